// The limit: WebSocket echo and broadcast in C, one thread, one epoll object, a recv and a send per message. It
// checks nothing beyond what it needs; for loads on the same machine.  epoll PORT
// GET /echo: what comes is sent back. GET /listen: what comes is sent to all who asked for /listen.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct Peer {
    int fd, place;
    bool open, listening, closing;
    unsigned char *in, *out; // allocated when something does not fit
    size_t have, room, out_at, out_size;
} Peer;

static int poll_fd;
static Peer **members;
static int member_count, member_room;
static unsigned char shared[1 << 18], reply[1 << 21];

static void fail(const char *what) {
    perror(what);
    exit(1);
}

// RFC 3174, of at most 119 bytes; and RFC 4648

static void sha1(const char *text, size_t size, unsigned char digest[20]) {
    uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0}, w[80];
    unsigned char block[128] = {0};
    size_t blocks = size < 56 ? 1 : 2;
    memcpy(block, text, size);
    block[size] = 0x80;
    block[64 * blocks - 2] = size * 8 >> 8;
    block[64 * blocks - 1] = size * 8;
    for (size_t b = 0; b < blocks; b++) {
        for (int i = 0; i < 16; i++) {
            unsigned char *p = block + 64 * b + 4 * i;
            w[i] = (uint32_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3];
        }
        for (int i = 16; i < 80; i++) {
            uint32_t x = w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16];
            w[i] = x << 1 | x >> 31;
        }
        uint32_t a = h[0], e1 = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 80; i++) {
            uint32_t f = i < 20 ? (e1 & c) | (~e1 & d) : i < 40 ? e1 ^ c ^ d : i < 60 ? (e1 & c) | (e1 & d) | (c & d) : e1 ^ c ^ d;
            uint32_t k = i < 20 ? 0x5a827999 : i < 40 ? 0x6ed9eba1 : i < 60 ? 0x8f1bbcdc : 0xca62c1d6;
            uint32_t t = (a << 5 | a >> 27) + f + e + k + w[i];
            e = d, d = c, c = e1 << 30 | e1 >> 2, e1 = a, a = t;
        }
        h[0] += a, h[1] += e1, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++) digest[i] = h[i / 4] >> (24 - 8 * (i % 4));
}

static void base64(const unsigned char *data, char *out) { // of 20 bytes
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int i = 0; i < 21; i += 3) {
        uint32_t x = data[i] << 16 | data[i + 1] << 8 | (i + 2 < 20 ? data[i + 2] : 0);
        for (int j = 0; j < 4; j++) *out++ = letters[x >> (18 - 6 * j) & 63];
    }
    out[-1] = '=';
    *out = 0;
}

static void drop(Peer *p) {
    close(p->fd);
    if (p->listening) {
        members[p->place] = members[--member_count];
        members[p->place]->place = p->place;
    }
    free(p->in);
    free(p->out);
    free(p);
}

static void watch(Peer *p, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = p};
    epoll_ctl(poll_fd, EPOLL_CTL_MOD, p->fd, &event);
}

// Sends, and keeps what the kernel does not take.
static void put(Peer *p, const unsigned char *data, size_t size) {
    ssize_t sent = 0;
    if (!p->out) {
        sent = send(p->fd, data, size, MSG_NOSIGNAL);
        if (sent == (ssize_t)size) return;
        if (sent < 0 && errno != EAGAIN) return; // the end comes by reading
        if (sent < 0) sent = 0;
        watch(p, EPOLLIN | EPOLLOUT);
    }
    p->out = realloc(p->out, p->out_size + size - sent);
    memcpy(p->out + p->out_size, data + sent, size - sent);
    p->out_size += size - sent;
}

static void put_rest(Peer *p) {
    ssize_t sent = send(p->fd, p->out + p->out_at, p->out_size - p->out_at, MSG_NOSIGNAL);
    if (sent > 0) p->out_at += sent;
    if (p->out_at < p->out_size) return;
    free(p->out);
    p->out = NULL;
    p->out_at = p->out_size = 0;
    watch(p, EPOLLIN);
}

static size_t frame(unsigned char *to, int first, const unsigned char *payload, size_t size) {
    size_t n = 0;
    to[n++] = first;
    if (size < 126) {
        to[n++] = size;
    } else if (size < 65536) {
        to[n++] = 126, to[n++] = size >> 8, to[n++] = size;
    } else {
        to[n++] = 127;
        for (int i = 7; i >= 0; i--) to[n++] = (uint64_t)size >> (8 * i);
    }
    memcpy(to + n, payload, size);
    return n + size;
}

static size_t shake_hands(Peer *p, char *in, size_t size) {
    char *end = memmem(in, size, "\r\n\r\n", 4), *key;
    if (!end) return 0;
    *end = 0;
    key = strcasestr(in, "\r\nSec-WebSocket-Key:");
    if (!key || strncmp(in, "GET /", 5)) {
        p->closing = true;
        return 0;
    }
    char text[100], accept[32], answer[200];
    unsigned char digest[21] = {0};
    sscanf(key + 20, " %24s", text);
    strcat(text, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    sha1(text, strlen(text), digest);
    base64(digest, accept);
    int n = snprintf(answer, sizeof answer,
                     "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Accept: %s\r\n\r\n", accept);
    p->open = true;
    if (!strncmp(in, "GET /listen", 11)) {
        if (member_count == member_room) members = realloc(members, (member_room += 4096) * sizeof *members);
        p->listening = true;
        p->place = member_count;
        members[member_count++] = p;
    }
    put(p, (unsigned char *)answer, n);
    return end + 4 - in;
}

static size_t take_frame(Peer *p, unsigned char *in, size_t size) {
    if (size < 6) return 0;
    size_t length = in[1] & 127, head = 6;
    if (length == 126) {
        if (size < 8) return 0;
        length = in[2] << 8 | in[3], head = 8;
    } else if (length == 127) {
        if (size < 14) return 0;
        length = 0, head = 14;
        for (int i = 2; i < 10; i++) length = length << 8 | in[i];
    }
    if (head + length > size) return 0;
    unsigned char *payload = in + head, *mask = payload - 4;
    uint64_t key = 0;
    for (int i = 0; i < 8; i++) key |= (uint64_t)mask[i & 3] << (8 * i);
    size_t i = 0;
    for (; i + 8 <= length; i += 8) {
        uint64_t x;
        memcpy(&x, payload + i, 8);
        x ^= key;
        memcpy(payload + i, &x, 8);
    }
    for (; i < length; i++) payload[i] ^= mask[i & 3];
    int opcode = in[0] & 15;
    if (length + 14 > sizeof reply) {
        p->closing = true;
    } else if (opcode == 8) {
        put(p, reply, frame(reply, 0x88, payload, length));
        p->closing = true;
    } else if (opcode == 9) {
        put(p, reply, frame(reply, 0x8a, payload, length));
    } else if (opcode == 1 || opcode == 2) {
        size_t n = frame(reply, in[0], payload, length);
        if (!p->listening) put(p, reply, n);
        else
            for (int m = 0; m < member_count; m++) put(members[m], reply, n);
    }
    return head + length;
}

static void readable(Peer *p) {
    unsigned char *in = shared;
    size_t have = 0, room = sizeof shared;
    if (p->in) {
        if (p->room - p->have < 65536) p->in = realloc(p->in, p->room *= 2);
        in = p->in, have = p->have, room = p->room;
    }
    ssize_t got = recv(p->fd, in + have, room - have, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        drop(p);
        return;
    }
    have += got;
    size_t at = 0, used;
    while (!p->closing && (used = p->open ? take_frame(p, in + at, have - at)
                                          : shake_hands(p, (char *)in + at, have - at)))
        at += used;
    if (p->closing && !p->out) {
        drop(p);
    } else if (at == have) {
        free(p->in);
        p->in = NULL;
    } else if (p->in) {
        memmove(p->in, p->in + at, have - at);
        p->have = have - at;
    } else {
        p->room = 2 * (have - at) + 65536;
        p->in = malloc(p->room);
        memcpy(p->in, in + at, have - at);
        p->have = have - at;
    }
}

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: epoll PORT\n"), 2;
    int one = 1, server = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in at = {
        .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(server, (void *)&at, sizeof at)) fail("bind");
    if (listen(server, 1024)) fail("listen");
    poll_fd = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN}, events[512];
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, server, &event);
    for (;;) {
        int n = epoll_wait(poll_fd, events, 512, -1);
        for (int i = 0; i < n; i++) {
            Peer *p = events[i].data.ptr;
            if (p) {
                if (events[i].events & EPOLLOUT) put_rest(p);
                if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(p);
                continue;
            }
            int fd = accept4(server, NULL, NULL, SOCK_NONBLOCK);
            if (fd < 0) continue;
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            p = calloc(1, sizeof *p);
            p->fd = fd;
            event = (struct epoll_event){.events = EPOLLIN, .data.ptr = p};
            epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event);
        }
    }
}
