// WebSocket load, one process, one thread.
//   wsload echo  PORT PATH CLIENTS SECONDS SIZE   each client keeps one message in flight
//   wsload idle  PORT PATH CLIENTS                connects, prints "ready", holds until stdin closes
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

static void connect_client(Client *c, int number, int port, const char *path) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0) die("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
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

// Takes all whole frames out of the buffer; returns how many messages they were.
static int take_frames(Client *c) {
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
        o += head + length;
        if (opcode <= 2) messages++;
    }
    memmove(c->in, c->in + o, c->have - o);
    c->have -= o;
    return messages;
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

int main(int argc, char **argv) {
    int echo = argc == 7 && !strcmp(argv[1], "echo"), idle = argc == 5 && !strcmp(argv[1], "idle");
    if (!echo && !idle) {
        fprintf(stderr, "usage: wsload echo PORT PATH CLIENTS SECONDS SIZE | wsload idle PORT PATH CLIENTS\n");
        return 2;
    }
    int port = atoi(argv[2]), count = atoi(argv[4]);
    Client *clients = calloc(count, sizeof *clients);
    double start = now();
    for (int i = 0; i < count; i++) connect_client(&clients[i], i, port, argv[3]);
    double connecting = now() - start;
    if (idle) {
        printf("ready\n");
        fflush(stdout);
        char byte;
        while (read(0, &byte, 1) > 0) {}
        return 0;
    }
    double seconds = atof(argv[5]);
    make_frame(atol(argv[6]));
    int poll = epoll_create1(0);
    for (int i = 0; i < count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &clients[i]};
        epoll_ctl(poll, EPOLL_CTL_ADD, clients[i].fd, &event);
        send_frame(&clients[i]);
    }
    struct epoll_event events[512];
    long messages = 0;
    start = now();
    while (now() < start + seconds) {
        int n = epoll_wait(poll, events, 512, 100);
        for (int j = 0; j < n; j++) {
            Client *c = events[j].data.ptr;
            if (c->cap - c->have < 4096) c->in = realloc(c->in, c->cap *= 2);
            ssize_t r = recv(c->fd, c->in + c->have, c->cap - c->have, 0);
            if (r < 0 && errno == EAGAIN) continue;
            errno = 0;
            if (r <= 0) die("the server closed a connection");
            c->have += r;
            for (int k = take_frames(c); k > 0; k--) {
                note_latency(now() - c->sent);
                messages++;
                send_frame(c);
            }
        }
    }
    double elapsed = now() - start;
    if (!latencies) die("no message came back");
    qsort(latency, latencies, sizeof *latency, by_value);
    printf("{\"messages_per_second\": %.1f, \"p50_ms\": %.4f, \"p99_ms\": %.4f, \"max_ms\": %.4f, "
           "\"connects_per_second\": %.1f}\n",
           messages / elapsed, latency[latencies / 2] * 1e3, latency[(size_t)(latencies * .99)] * 1e3,
           latency[latencies - 1] * 1e3, count / connecting);
    return 0;
}
