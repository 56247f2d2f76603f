// WebSocket load, one process, one thread.
//   wsload echo  PORT PATH CLIENTS SECONDS SIZE   each client keeps one message in flight
//   wsload idle  PORT PATH CLIENTS                connects, prints "ready", holds until stdin closes
//   wsload listen PORT PATH CLIENTS SECONDS STALLED  counts what the server sends by itself, after a second of
//       warming up; a message starts with the server's CLOCK_MONOTONIC, which gives its delay. STALLED further
//       clients connect first, to PATH&stalled=1, and read nothing until the time is over.
// Prints one JSON object. Exit code 1: a connection failed or the server closed one.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    int fd;
    unsigned char *in;
    size_t have, cap;
    double sent;
    int code; // of a Close frame
} Client;

static unsigned char *frame;
static size_t frame_size;
static float *latency;
static size_t latencies, latency_cap;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void die(const char *what) {
    fprintf(stderr, "wsload: %s: %s\n", what, errno ? strerror(errno) : "");
    exit(1);
}

static void make_frame(size_t size) {
    size_t p = 0;
    unsigned char mask[4] = {1, 2, 3, 4};
    frame = malloc(size + 14);
    frame[p++] = 0x81;
    if (size < 126) {
        frame[p++] = 0x80 | size;
    } else if (size < 65536) {
        frame[p++] = 0x80 | 126;
        frame[p++] = size >> 8;
        frame[p++] = size & 255;
    } else {
        frame[p++] = 0x80 | 127;
        for (int i = 7; i >= 0; i--) frame[p++] = (size >> (8 * i)) & 255;
    }
    memcpy(frame + p, mask, 4);
    p += 4;
    for (size_t i = 0; i < size; i++) frame[p + i] = 'x' ^ mask[i & 3];
    frame_size = p + size;
}

static void send_frame(Client *c) {
    size_t done = 0;
    while (done < frame_size) {
        ssize_t r = send(c->fd, frame + done, frame_size - done, MSG_NOSIGNAL);
        if (r < 0) {
            if (errno != EAGAIN) die("send");
            usleep(50);
            continue;
        }
        done += r;
    }
    c->sent = now();
}

static void connect_client(Client *c, int number, int port, const char *path, int buffer) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0) die("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (buffer) setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer);
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000002 + number / 20000)};
    if (number >= 20000) bind(c->fd, (void *)&from, sizeof from);
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (connect(c->fd, (void *)&to, sizeof to)) die("connect");
    char request[1024];
    int n = snprintf(request, sizeof request,
                     "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
                     path, port);
    if (send(c->fd, request, n, MSG_NOSIGNAL) != n) die("send request");
    c->cap = 4096;
    c->in = malloc(c->cap);
    for (;;) {
        ssize_t r = recv(c->fd, c->in + c->have, c->cap - c->have, 0);
        if (r <= 0) die("the server closed during the handshake");
        c->have += r;
        unsigned char *end = memmem(c->in, c->have, "\r\n\r\n", 4);
        if (!end) continue;
        errno = 0;
        if (memcmp(c->in + 9, "101", 3)) die("the server did not answer 101");
        size_t head = end + 4 - c->in;
        memmove(c->in, end + 4, c->have - head);
        c->have -= head;
        break;
    }
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static void note_latency(double seconds) {
    if (latencies == latency_cap) {
        latency_cap = latency_cap ? 2 * latency_cap : 1 << 20;
        latency = realloc(latency, latency_cap * sizeof *latency);
    }
    latency[latencies++] = seconds;
}

// Takes all whole frames out of the buffer; returns how many messages they were. With a time, the messages
// start with that of their sending.
static int take_frames(Client *c, double received) {
    int messages = 0;
    size_t o = 0;
    while (c->have - o >= 2) {
        unsigned char *f = c->in + o;
        size_t length = f[1] & 127, head = 2;
        if (length == 126) {
            if (c->have - o < 4) break;
            length = f[2] << 8 | f[3];
            head = 4;
        } else if (length == 127) {
            if (c->have - o < 10) break;
            length = 0;
            for (int q = 0; q < 8; q++) length = length << 8 | f[2 + q];
            head = 10;
        }
        if (head + length + 64 > c->cap) {
            c->cap = head + length + 8192;
            c->in = realloc(c->in, c->cap);
        }
        if (c->have - o < head + length) break;
        int opcode = c->in[o] & 15;
        unsigned char *payload = c->in + o + head;
        if (opcode <= 2 && received) note_latency(received - strtod((char *)payload, NULL));
        if (opcode == 8) c->code = length < 2 ? 1005 : payload[0] << 8 | payload[1];
        o += head + length;
        if (opcode <= 2) messages++;
    }
    memmove(c->in, c->in + o, c->have - o);
    c->have -= o;
    return messages;
}

// Reads what there is; returns how many messages came, -1 if the server has closed.
static int receive(Client *c, int timed) {
    if (c->cap - c->have < 4096) c->in = realloc(c->in, c->cap *= 2);
    ssize_t r = recv(c->fd, c->in + c->have, c->cap - c->have - 1, 0);
    if (r < 0 && errno == EAGAIN) return 0;
    errno = 0;
    if (r <= 0) return -1;
    c->have += r;
    c->in[c->have] = 0; // strtod stops here
    return take_frames(c, timed ? now() : 0);
}

static void print_latencies(void) {
    qsort(latency, latencies, sizeof *latency, by_value);
    printf("\"p50_ms\": %.4f, \"p99_ms\": %.4f, \"max_ms\": %.4f", latency[latencies / 2] * 1e3,
           latency[(size_t)(latencies * .99)] * 1e3, latency[latencies - 1] * 1e3);
}

static int listen_to(int poll, double seconds, Client *stalled, int stalled_count) {
    struct epoll_event events[512];
    long messages = 0;
    double start = now() + 1, end = start + seconds, at;
    while ((at = now()) < end) {
        int n = epoll_wait(poll, events, 512, 100);
        for (int j = 0; j < n; j++) {
            int received = receive(events[j].data.ptr, at > start);
            if (received < 0) die("the server closed a connection");
            if (at > start) messages += received;
        }
    }
    if (!latencies) die("no message came");
    printf("{\"messages_per_second\": %.1f, ", messages / seconds);
    print_latencies();
    printf(", \"stalled\": [");
    for (int i = 0; i < stalled_count; i++) { // what became of it: read all that is left, within 5 s
        long got = 0;
        int r = 0;
        for (end = now() + 5; now() < end && r >= 0 && !stalled[i].code; got += r > 0 ? r : 0)
            if (!(r = receive(&stalled[i], 0))) usleep(100);
        printf("%s{\"messages\": %ld, \"close_code\": %d, \"closed\": %s}", i ? ", " : "", got,
               stalled[i].code, r < 0 || stalled[i].code ? "true" : "false");
    }
    printf("]}\n");
    return 0;
}

int main(int argc, char **argv) {
    int echo = argc == 7 && !strcmp(argv[1], "echo"), idle = argc == 5 && !strcmp(argv[1], "idle");
    int listening = argc == 7 && !strcmp(argv[1], "listen");
    if (!echo && !idle && !listening) {
        fprintf(stderr, "usage: wsload echo PORT PATH CLIENTS SECONDS SIZE | wsload idle PORT PATH CLIENTS | "
                        "wsload listen PORT PATH CLIENTS SECONDS STALLED\n");
        return 2;
    }
    int port = atoi(argv[2]), count = atoi(argv[4]), stalled = listening ? atoi(argv[6]) : 0;
    Client *clients = calloc(count, sizeof *clients), *silent = calloc(stalled + 1, sizeof *silent);
    char path[512];
    snprintf(path, sizeof path, "%s&stalled=1", argv[3]);
    double start = now();
    for (int i = 0; i < stalled; i++) connect_client(&silent[i], i, port, path, 4096);
    for (int i = 0; i < count; i++) connect_client(&clients[i], i, port, argv[3], 0);
    double connecting = now() - start;
    if (idle) {
        printf("ready\n");
        fflush(stdout);
        char byte;
        while (read(0, &byte, 1) > 0) {}
        return 0;
    }
    double seconds = atof(argv[5]);
    if (echo) make_frame(atol(argv[6]));
    int poll = epoll_create1(0);
    for (int i = 0; i < count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &clients[i]};
        epoll_ctl(poll, EPOLL_CTL_ADD, clients[i].fd, &event);
        if (echo) send_frame(&clients[i]);
    }
    if (listening) return listen_to(poll, seconds, silent, stalled);
    struct epoll_event events[512];
    long messages = 0;
    start = now();
    while (now() < start + seconds) {
        int n = epoll_wait(poll, events, 512, 100);
        for (int j = 0; j < n; j++) {
            Client *c = events[j].data.ptr;
            int received = receive(c, 0);
            if (received < 0) die("the server closed a connection");
            while (received-- > 0) {
                note_latency(now() - c->sent);
                messages++;
                send_frame(c);
            }
        }
    }
    double elapsed = now() - start;
    if (!latencies) die("no message came back");
    printf("{\"messages_per_second\": %.1f, \"connects_per_second\": %.1f, ", messages / elapsed,
           count / connecting);
    print_latencies();
    printf("}\n");
    return 0;
}
