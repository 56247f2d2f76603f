// A WebSocket client (RFC 6455) that keeps no message: what comes is compared with what must come, chunk by
// chunk, wherever TCP has split it. Whatever is wrong ends the program with a word about it.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_ZLIB
#include <zlib.h>
#endif

typedef struct {
    unsigned char *text, *frame;
    size_t size, frame_size;
} Message;

typedef struct Client {
    int fd, number, stage; // OPENING ...
    uint32_t events;       // what epoll watches for
    char *answer;          // the head of the HTTP response, until it is whole
    size_t answered;
    unsigned char head[10], control[125]; // of the frame that is being read
    unsigned head_have, head_need, control_have;
    uint64_t left;        // payload of it that is still to come
    bool in_message, compressed, engineio_ping;
    size_t at;               // how far into the message
    const Message *expected; // NULL: anything
    const unsigned char *out;
    size_t out_left;
    unsigned char reply[300]; // Pongs and a Close that wait behind `out`
    size_t reply_size;
    bool reply_cut; // a part of them is out already
    long count;
    double sent;
    int close_code;
#ifdef WITH_ZLIB
    z_stream *zip;
#endif
} Client;

enum { OPENING, GREETING, JOINING, OPEN, GONE }; // GREETING and JOINING: of Socket.IO

static struct {
    int port, addresses;
    bool deflate, socketio, fresh_context;
    char request[2048];
    size_t request_size;
} target;

static Message *messages;
static int variants;
static int poll_fd;
static unsigned char buffer[1 << 18];
static void (*on_open)(Client *), (*on_message)(Client *), (*on_gone)(Client *);

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void die(Client *c, const char *what, ...) {
    va_list more;
    va_start(more, what);
    fprintf(stderr, "wsload: ");
    if (c) fprintf(stderr, "client %d: ", c->number);
    vfprintf(stderr, what, more);
    fprintf(stderr, "\n");
    exit(1);
}

static void *or_die(void *memory) {
    if (!memory) die(NULL, "out of memory");
    return memory;
}

// What is sent, and must come back

static size_t put_head(unsigned char *to, int first, size_t size) {
    size_t n = 0;
    to[n++] = first;
    if (size < 126) {
        to[n++] = 0x80 | size;
    } else if (size < 65536) {
        to[n++] = 0x80 | 126;
        to[n++] = size >> 8;
        to[n++] = size;
    } else {
        to[n++] = 0x80 | 127;
        for (int i = 7; i >= 0; i--) to[n++] = (uint64_t)size >> (8 * i);
    }
    for (int i = 0; i < 4; i++) to[n++] = rand();
    return n;
}

static size_t make_frame(unsigned char *frame, int first, const unsigned char *payload, size_t size) {
    size_t head = put_head(frame, first, size);
    for (size_t i = 0; i < size; i++) frame[head + i] = payload[i] ^ frame[head - 4 + (i & 3)];
    return head + size;
}

static void make_text(unsigned char *text, size_t size, int variant, char first) {
    static const char *words[] = {"socket", "message", "nursery", "cancel", "scope",  "group", "member", "history",
                                  "close",  "ping",    "frame",   "mask",   "stream", "queue", "limit",  "peer"};
    size_t n = 0;
    uint32_t random = 12345 + variant;
    char word[32];
    snprintf(word, sizeof word, "%c%d ", first, variant);
    while (n < size) {
        for (const char *p = word; *p && n < size; p++) text[n++] = *p;
        random = random * 1664525 + 1013904223;
        snprintf(word, sizeof word, "%s %d ", words[random >> 28], random >> 8 & 1023);
    }
}

static void make_message(Message *m, size_t size, int variant, char first) {
    const char *before = target.socketio ? "42[\"message\",\"" : "", *after = target.socketio ? "\"]" : "";
    m->size = size + strlen(before) + strlen(after);
    m->text = or_die(malloc(m->size + 1));
    memcpy(m->text, before, strlen(before));
    make_text(m->text + strlen(before), size, variant, first);
    memcpy(m->text + strlen(before) + size, after, strlen(after));
    m->frame = or_die(malloc(m->size + m->size / 8 + 64));
    if (!target.deflate) {
        m->frame_size = make_frame(m->frame, 0x81, m->text, m->size);
        return;
    }
#ifdef WITH_ZLIB
    z_stream zip = {0};
    size_t room = m->size + m->size / 8 + 32;
    unsigned char *packed = or_die(malloc(room));
    deflateInit2(&zip, 6, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY);
    zip.next_in = m->text, zip.avail_in = m->size, zip.next_out = packed, zip.avail_out = room;
    if (deflate(&zip, Z_SYNC_FLUSH) != Z_OK || zip.avail_in) die(NULL, "deflate");
    m->frame_size = make_frame(m->frame, 0xc1, packed, zip.total_out - 4); // RFC 7692 §7.2.1
    deflateEnd(&zip);
    free(packed);
#endif
}

// A few different messages, so that neither a cache nor a compressor sees the same one all the time.
static void make_messages(size_t size) {
    variants = size ? (1 << 17) / size : 64;
    variants = variants < 2 ? 2 : variants > 64 ? 64 : variants;
    messages = or_die(calloc(variants, sizeof *messages));
    for (int i = 0; i < variants; i++) make_message(&messages[i], size, i, 'm');
}

// Sending

static void watch(Client *c, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    int operation = !c->events ? EPOLL_CTL_ADD : events ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;
    if (events != c->events && epoll_ctl(poll_fd, operation, c->fd, &event)) die(c, "epoll: %s", strerror(errno));
    c->events = events;
}

static void flush(Client *c) {
    while (c->out_left || c->reply_size) {
        bool message = c->out_left && !c->reply_cut;
        ssize_t sent = message ? send(c->fd, c->out, c->out_left, MSG_NOSIGNAL)
                               : send(c->fd, c->reply, c->reply_size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) break;
        if (sent < 0) die(c, "send: %s", strerror(errno));
        if (message) {
            c->out += sent;
            c->out_left -= sent;
        } else {
            c->reply_size -= sent;
            c->reply_cut = c->reply_size;
            memmove(c->reply, c->reply + sent, c->reply_size);
        }
    }
    watch(c, c->out_left || c->reply_size ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

static void put(Client *c, const unsigned char *data, size_t size) {
    if (c->out_left) die(c, "a message was to be sent before the last one was out");
    c->out = data;
    c->out_left = size;
    flush(c);
}

static void put_message(Client *c, const Message *message) {
    c->sent = now();
    put(c, message->frame, message->frame_size);
}

static void put_reply(Client *c, int opcode, const unsigned char *payload, size_t size) {
    if (c->reply_size + size + 14 > sizeof c->reply) die(c, "the server takes no Pong");
    c->reply_size += make_frame(c->reply + c->reply_size, 0x80 | opcode, payload, size);
    flush(c);
}

// Receiving

static void compare(Client *c, const unsigned char *data, size_t size) {
    if (target.socketio && c->at == 0 && size == 1 && c->left == 1 && *data == '2') c->engineio_ping = true;
    if (c->expected && !c->engineio_ping) {
        if (c->at + size > c->expected->size)
            die(c, "more than the %zu bytes that were sent came back", c->expected->size);
        if (memcmp(data, c->expected->text + c->at, size))
            die(c, "something else came than was sent, at byte %zu: %.60s", c->at, (const char *)data);
    }
    c->at += size;
}

static void unpack(Client *c, const unsigned char *data, size_t size, bool last) {
#ifdef WITH_ZLIB
    static unsigned char out[1 << 16];
    if (!c->zip) {
        c->zip = or_die(calloc(1, sizeof *c->zip));
        if (inflateInit2(c->zip, -15) != Z_OK) die(c, "inflateInit");
    }
    c->zip->next_in = (unsigned char *)data;
    c->zip->avail_in = size;
    do {
        c->zip->next_out = out;
        c->zip->avail_out = sizeof out;
        int result = inflate(c->zip, Z_SYNC_FLUSH);
        if (result != Z_OK && result != Z_BUF_ERROR) die(c, "what came is not compressed as agreed on");
        compare(c, out, sizeof out - c->zip->avail_out);
    } while (!c->zip->avail_out || c->zip->avail_in);
    if (last && target.fresh_context) inflateReset(c->zip);
#else
    (void)data, (void)size, (void)last, die(c, "built without zlib");
#endif
}

static void end_message(Client *c) {
    if (c->compressed) unpack(c, (const unsigned char *)"\0\0\xff\xff", 4, true);
    bool ping = c->engineio_ping;
    if (c->expected && !ping && c->at != c->expected->size)
        die(c, "%zu of %zu bytes came back", c->at, c->expected->size);
    c->at = 0;
    c->in_message = c->compressed = c->engineio_ping = false;
    if (ping) {
        put_reply(c, 1, (const unsigned char *)"3", 1);
    } else if (c->stage == GREETING) {
        c->stage = JOINING;
        put_reply(c, 1, (const unsigned char *)"40", 2);
    } else if (c->stage == JOINING) {
        c->stage = OPEN;
        on_open(c);
    } else {
        c->count++;
        on_message(c);
    }
}

static void begin_frame(Client *c) {
    int opcode = c->head[0] & 15, rsv = c->head[0] & 0x70;
    c->left = c->head[1] & 127;
    if (c->left >= 126) {
        c->left = 0;
        for (unsigned i = 2; i < c->head_need; i++) c->left = c->left << 8 | c->head[i];
    }
    if (opcode >= 8) {
        if (opcode > 10 || rsv || c->left > 125 || !(c->head[0] & 0x80)) die(c, "a bad control frame came");
        c->control_have = 0;
        return;
    }
    if (opcode > 2 || (opcode == 0) != c->in_message) die(c, "a frame with opcode %d came out of turn", opcode);
    if (rsv == 0x40 && target.deflate && opcode) c->compressed = true;
    else if (rsv) die(c, "a reserved bit is set");
    c->in_message = true;
}

static void end_frame(Client *c) {
    int opcode = c->head[0] & 15;
    bool fin = c->head[0] & 0x80;
    c->head_have = 0;
    c->head_need = 2;
    if (opcode == 8) {
        c->close_code = c->control_have < 2 ? 1005 : c->control[0] << 8 | c->control[1];
        on_gone(c);
    } else if (opcode == 9) {
        put_reply(c, 10, c->control, c->control_have);
    } else if (opcode < 8 && fin) {
        end_message(c);
    }
}

static void take(Client *c, const unsigned char *data, size_t size) {
    while (size && c->stage != GONE) {
        if (c->head_have < c->head_need) {
            c->head[c->head_have++] = *data++;
            size--;
            if (c->head_have == 2) {
                if (c->head[1] & 0x80) die(c, "a masked frame came");
                c->head_need = (c->head[1] & 127) == 126 ? 4 : (c->head[1] & 127) == 127 ? 10 : 2;
            }
            if (c->head_have < c->head_need) continue;
            begin_frame(c);
        } else {
            size_t chunk = size < c->left ? size : c->left;
            if ((c->head[0] & 15) >= 8) {
                memcpy(c->control + c->control_have, data, chunk);
                c->control_have += chunk;
            } else if (c->compressed) {
                unpack(c, data, chunk, false);
            } else {
                compare(c, data, chunk);
            }
            c->left -= chunk;
            data += chunk;
            size -= chunk;
        }
        if (!c->left) end_frame(c);
    }
}

// The opening handshake

static void prepare(const char *path) {
    int n = snprintf(target.request, sizeof target.request,
                     "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n",
                     path, target.port, target.deflate ? "Sec-WebSocket-Extensions: permessage-deflate\r\n" : "");
    if (n >= (int)sizeof target.request) die(NULL, "the path is too long");
    target.request_size = n;
}

static void open_client(Client *c, int number, int receive_buffer) {
    *c = (Client){.number = number, .head_need = 2, .answer = or_die(malloc(2049))};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0) die(c, "socket: %s", strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (receive_buffer) setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    if (target.addresses) {
        int which = number % target.addresses;
        uint32_t address = 0x7f000101 + (which / 250 << 8) + which % 250; // 127.0.1.1 and on
        struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(address)};
        setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        if (bind(c->fd, (void *)&from, sizeof from)) die(c, "bind: %s", strerror(errno));
    }
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(target.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    c->sent = now();
    if (connect(c->fd, (void *)&to, sizeof to)) die(c, "connect: %s", strerror(errno));
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    put(c, (unsigned char *)target.request, target.request_size);
}

static void take_answer(Client *c, const unsigned char *data, size_t size) {
    size_t room = 2048 - c->answered, chunk = size < room ? size : room;
    memcpy(c->answer + c->answered, data, chunk);
    c->answered += chunk;
    c->answer[c->answered] = 0;
    char *end = strstr(c->answer, "\r\n\r\n");
    if (!end) {
        if (c->answered == 2048) die(c, "the head of the answer has no end");
        return;
    }
    *end = 0;
    if (strncmp(c->answer, "HTTP/1.1 101", 12)) die(c, "the server answered %.40s", c->answer);
    if (!strstr(c->answer, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")) die(c, "a wrong Sec-WebSocket-Accept came");
    if (target.deflate && !strcasestr(c->answer, "permessage-deflate")) {
        fprintf(stderr, "wsload: the server does not agree to permessage-deflate\n");
        exit(3);
    }
    if (strcasestr(c->answer, "server_no_context_takeover")) target.fresh_context = true;
    size_t used = end + 4 - c->answer - (c->answered - chunk);
    free(c->answer);
    c->answer = NULL;
    if (target.socketio) c->stage = GREETING;
    else c->stage = OPEN, on_open(c);
    take(c, data + used, size - used);
}

static void serve(int milliseconds) {
    struct epoll_event events[512];
    int n = epoll_wait(poll_fd, events, 512, milliseconds);
    for (int i = 0; i < n; i++) {
        Client *c = events[i].data.ptr;
        if (!c || c->stage == GONE) continue;
        if (events[i].events & EPOLLOUT) flush(c);
        if (!(events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) continue;
        ssize_t got = recv(c->fd, buffer, sizeof buffer, 0);
        if (got < 0 && errno == EAGAIN) continue;
        if (got <= 0) {
            on_gone(c);
        } else if (c->stage == OPENING) {
            take_answer(c, buffer, got);
        } else {
            take(c, buffer, got);
        }
    }
}
