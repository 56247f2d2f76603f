// WebSocket load, one process, one thread:  wsload MODE PORT PATH [OPTION...]
//   echo       each client keeps one message in flight; each has an answer before the counting begins, and at least as
//              many messages as there are clients are counted
//   broadcast  client 0 sends; the server is to send that to all clients, itself included. The next one is sent
//              when all have got the one before the last (--window 2), so that a server is never without work and
//              never more than that behind; or --rate times a second, come what may
//   connect    opens, closes, and waits for the server's Close and end of TCP, over and over, some in parallel
//   idle       connects, prints "ready", answers pings until stdin has something to say, or closes
//   crowd      connects, prints "ready"; then, a line each on stdin: "echo": each client sends and gets a message;
//              "send": client 0 sends what all are to get; "receive": all get what a client of another process sent
// Options: --clients N, --seconds S, --warmup S (not counted), --size BYTES, --window N, --rate N, --parallel N,
//   --addresses N (clients come from 127.0.1.1 and on), --first N (number of the first client, which decides on its
//   address), --idle N (further clients that are only there), --stalled N (further ones that read nothing until the
//   time is over), --pid PID (of the server; its CPU time is told as well, for several all together), --deflate (offer it, send compressed), --socketio (speak it: --path /socket.io/?EIO=4&...)
// Prints one JSON object. Exit code 1: something went wrong, as said on stderr; 3: no permessage-deflate.
#include "client.h"
#include <getopt.h>

enum { RING = 256 };

static struct {
    int clients, window, parallel, first, idle, stalled;
    double seconds, warmup, rate;
    size_t size;
} with = {.clients = 1, .window = 2, .parallel = 16, .seconds = 1, .warmup = 0.3, .size = 32};

static float *latency;
static size_t latencies, latency_room;
static long counted;
static double counting_from = 1e300, last_message;
static Client *clients;
static int opened;
static bool finishing;

static void note_latency(double seconds) {
    if (latencies == latency_room) {
        latency_room = latency_room ? 2 * latency_room : 1 << 20;
        latency = or_die(realloc(latency, latency_room * sizeof *latency));
    }
    latency[latencies++] = seconds;
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static int pids[16], pid_count;
static double cpu_before;

// Seconds of CPU time that the processes of --pid have used.
static double server_cpu(void) {
    long ticks = 0;
    for (int i = 0; i < pid_count; i++) {
        char path[64], line[1024], *end;
        long user, system;
        snprintf(path, sizeof path, "/proc/%d/stat", pids[i]);
        FILE *file = fopen(path, "r");
        if (!file) continue;
        if (fgets(line, sizeof line, file) && (end = strrchr(line, ')')) &&
            sscanf(end + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %ld %ld", &user, &system) == 2)
            ticks += user + system;
        fclose(file);
    }
    return (double)ticks / sysconf(_SC_CLK_TCK);
}

static void print_result(const char *unit, double seconds) {
    if (!latencies) die(NULL, "nothing came in %.1f s", seconds);
    qsort(latency, latencies, sizeof *latency, by_value);
    printf("{\"%s\": %.1f, \"seconds\": %.3f, \"p50_ms\": %.4f, \"p99_ms\": %.4f, \"max_ms\": %.4f", unit,
           counted / seconds, seconds, latency[latencies / 2] * 1e3, latency[(size_t)(latencies * .99)] * 1e3,
           latency[latencies - 1] * 1e3);
    if (pid_count) printf(", \"server_cpu\": %.3f", (server_cpu() - cpu_before) / seconds);
}

static void begin_counting(void) {
    cpu_before = server_cpu();
    latencies = counted = 0;
    counting_from = now();
}

static void serve_or_die(void) {
    serve(100);
    if (now() > last_message + 20) die(NULL, "the server has sent nothing for 20 s");
}

static void unexpected_end(Client *c) {
    if (c->close_code) die(c, "the server closed with %d %.*s", c->close_code, (int)c->control_have - 2, c->control + 2);
    die(c, "the server dropped the connection%s", c->stage == OPENING ? " during the handshake" : "");
}

static void nothing(Client *c) { (void)c; }

static void count_opened(Client *c) {
    (void)c;
    opened++;
    last_message = now();
}

// Connect `count` clients, a few at a time.
static void connect_all(Client *group, int count, int first, int receive_buffer) {
    on_open = count_opened;
    on_gone = unexpected_end;
    opened = 0;
    last_message = now();
    for (int started = 0; opened < count;) {
        while (started < count && started - opened < with.parallel) {
            open_client(&group[started], first + started, receive_buffer);
            started++;
        }
        serve_or_die();
    }
}

// echo

static int answered; // clients that have got their first message back

static void echoed(Client *c) {
    double at = now();
    last_message = at;
    answered += c->count == 1;
    if (at > counting_from) {
        note_latency(at - c->sent);
        counted++;
    }
    const Message *next = &messages[(c->number + c->count) % variants];
    c->expected = next;
    put_message(c, next);
}

static void echo(void) {
    Client *others = or_die(calloc(with.idle + 1, sizeof *others));
    on_message = echoed;
    connect_all(others, with.idle, with.first + with.clients, 0);
    connect_all(clients, with.clients, with.first, 0);
    last_message = now();
    for (int i = 0; i < with.clients; i++) {
        clients[i].expected = &messages[clients[i].number % variants];
        put_message(&clients[i], clients[i].expected);
    }
    // Large messages of many clients move side by side: for a long time none is whole, then all are.
    for (double end = now() + with.warmup; now() < end || answered < with.clients;) serve_or_die();
    begin_counting();
    for (double end = now() + with.seconds; now() < end || counted < with.clients;) serve_or_die();
    print_result("messages_per_second", now() - counting_from);
    printf("}\n");
}

// broadcast

static long sent, complete, owed;
static double sent_at[RING];
static int waiting_for[RING];

static void send_broadcast(void) {
    if (sent - complete >= RING) return; // the server does not keep up with the rate, which the figures show
    if (clients[0].out_left) {
        owed++;
        return;
    }
    sent_at[sent % RING] = now();
    waiting_for[sent % RING] = with.clients;
    const Message *message = &messages[sent % variants];
    sent++;
    put(&clients[0], message->frame, message->frame_size);
}

static void delivered(Client *c) {
    double at = now();
    last_message = at;
    if (c->stage != OPEN || !c->expected) return; // a stalled one that reads at last
    long round = c->count - 1;
    if (round >= sent) die(c, "a broadcast came that nobody has sent");
    if (at > counting_from) {
        note_latency(at - sent_at[round % RING]);
        counted++;
    }
    c->expected = &messages[c->count % variants];
    if (--waiting_for[round % RING]) return;
    complete++;
    if (!with.rate && !finishing) send_broadcast();
}

static void gone(Client *c) {
    watch(c, 0);
    c->stage = GONE;
}

static void broadcast(void) {
    Client *stalled = or_die(calloc(with.stalled + 1, sizeof *stalled));
    on_message = delivered;
    connect_all(stalled, with.stalled, with.first + with.clients, 4096);
    for (int i = 0; i < with.stalled; i++) watch(&stalled[i], 0);
    connect_all(clients, with.clients, with.first, 0);
    usleep(200000); // the server's side of the last ones may still be joining
    for (int i = 0; i < with.clients; i++) clients[i].expected = &messages[0];
    last_message = now();
    send_broadcast(); // alone: has everyone joined?
    finishing = true;
    while (complete < 1) serve_or_die();
    finishing = false;
    for (int i = 0; !with.rate && i < with.window; i++) send_broadcast();
    double next = now(), end = now() + with.warmup;
    for (int counting = 0; counting < 2; counting++) {
        long before = complete; // at least one whole round
        while (now() < end || complete < before + 1) {
            if (with.rate && now() >= next) send_broadcast(), next += 1 / with.rate;
            if (owed && !clients[0].out_left) owed--, send_broadcast();
            double pause = with.rate && next < now() + 0.1 ? next - now() : 0.1;
            serve(pause > 0 ? pause * 1e3 : 0);
            if (now() > last_message + 20) die(NULL, "the server has sent nothing for 20 s");
        }
        if (counting == 0) begin_counting(), end = now() + with.seconds;
    }
    print_result("deliveries_per_second", now() - counting_from);
    printf(", \"broadcasts\": %ld, \"stalled\": [", complete);
    on_gone = gone;
    for (int i = 0; i < with.stalled; i++) watch(&stalled[i], EPOLLIN);
    bool all_gone = !with.stalled;
    finishing = true;
    for (double until = now() + 5; now() < until && !all_gone;) {
        serve(100);
        all_gone = true;
        for (int i = 0; i < with.stalled; i++) all_gone &= stalled[i].stage == GONE;
    }
    for (int i = 0; i < with.stalled; i++)
        printf("%s{\"messages\": %ld, \"close_code\": %d, \"closed\": %s}", i ? ", " : "", stalled[i].count,
               stalled[i].close_code, stalled[i].stage == GONE ? "true" : "false");
    printf("]}\n");
}

// connect

static int next_number;

static void close_again(Client *c) {
    double at = now();
    last_message = at;
    if (at > counting_from) note_latency(at - c->sent); // of the opening
    put_reply(c, 8, (const unsigned char *)"\x03\xe8", 2);
}

static void closed(Client *c) {
    if (c->stage != OPEN) unexpected_end(c);
    if (!c->close_code) die(c, "TCP ended without a Close frame");
    if (c->close_code != 1000 && c->close_code != 1005) die(c, "closed with %d", c->close_code);
    char byte;
    ssize_t got = recv(c->fd, &byte, 1, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return; // its TCP end is still to come
    watch(c, 0);
    close(c->fd);
    if (now() > counting_from) counted++;
    c->stage = GONE;
    if (!finishing) open_client(c, with.first + next_number++, 0);
}

static void connect_and_close(void) {
    on_open = close_again;
    on_message = nothing;
    on_gone = closed;
    last_message = now();
    while (next_number < with.parallel) {
        open_client(&clients[next_number], with.first + next_number, 0);
        next_number++;
    }
    for (double end = now() + with.warmup; now() < end;) serve_or_die();
    begin_counting();
    for (double end = now() + with.seconds; now() < end || !latencies;) serve_or_die();
    print_result("connects_per_second", now() - counting_from);
    printf("}\n");
}

// idle, crowd

static bool stdin_is_readable(void) {
    fd_set set;
    struct timeval none = {0};
    FD_ZERO(&set);
    FD_SET(0, &set);
    return select(1, &set, NULL, NULL, &none) > 0;
}

static void connect_and_tell(void) {
    double start = now();
    connect_all(clients, with.clients, with.first, 0);
    printf("ready %.3f\n", now() - start);
    fflush(stdout);
    struct epoll_event event = {.events = EPOLLIN}; // so that stdin wakes us
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, 0, &event);
}

static void idle(void) {
    on_message = nothing;
    connect_and_tell();
    while (!stdin_is_readable()) serve(1000);
    printf("{\"clients\": %d}\n", with.clients);
}

static long goal, reached;

static void got_one(Client *c) {
    last_message = now();
    if (c->count <= goal) reached++;
    c->expected = &messages[c->count % 2];
}

static void crowd(void) {
    make_message(&messages[1], with.size, 1, '!'); // tells the server to send it to all
    on_message = got_one;
    connect_and_tell();
    for (int i = 0; i < with.clients; i++) clients[i].expected = &messages[0];
    char line[64];
    for (;;) {
        while (!stdin_is_readable()) serve(1000);
        if (!fgets(line, sizeof line, stdin)) break;
        goal++;
        reached = 0;
        for (int i = 0; i < with.clients; i++) reached += clients[i].count >= goal;
        double start = now();
        last_message = start;
        bool all = !strcmp(line, "echo\n"), one = !strcmp(line, "send\n");
        if (!all && !one && strcmp(line, "receive\n")) die(NULL, "no such command: %s", line);
        for (int i = 0; i < (all ? with.clients : one); i++) put_message(&clients[i], &messages[(goal - 1) % 2]);
        while (reached < with.clients) serve_or_die();
        printf("{\"messages\": %ld, \"first\": %.6f, \"last\": %.6f}\n", reached, start, last_message);
        fflush(stdout);
    }
}

int main(int argc, char **argv) {
    static const struct option options[] = {
        {"clients", 1, 0, 'c'}, {"seconds", 1, 0, 's'},   {"warmup", 1, 0, 'w'},   {"size", 1, 0, 'b'},
        {"window", 1, 0, 'W'},  {"rate", 1, 0, 'r'},      {"parallel", 1, 0, 'p'}, {"addresses", 1, 0, 'a'},
        {"first", 1, 0, 'f'},   {"idle", 1, 0, 'i'},      {"stalled", 1, 0, 'S'},  {"deflate", 0, 0, 'd'},
        {"pid", 1, 0, 'P'},
        {"socketio", 0, 0, 'o'}, {0},
    };
    static const struct {
        const char *name;
        void (*run)(void);
    } modes[] = {{"echo", echo}, {"broadcast", broadcast}, {"connect", connect_and_close}, {"idle", idle}, {"crowd", crowd}};
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) switch (option) {
        case 'c': with.clients = atoi(optarg); break;
        case 's': with.seconds = atof(optarg); break;
        case 'w': with.warmup = atof(optarg); break;
        case 'b': with.size = atol(optarg); break;
        case 'W': with.window = atoi(optarg); break;
        case 'r': with.rate = atof(optarg); break;
        case 'p': with.parallel = atoi(optarg); break;
        case 'a': target.addresses = atoi(optarg); break;
        case 'f': with.first = atoi(optarg); break;
        case 'i': with.idle = atoi(optarg); break;
        case 'S': with.stalled = atoi(optarg); break;
        case 'P':
            if (pid_count < 16) pids[pid_count++] = atoi(optarg);
            break;
        case 'd': target.deflate = true; break;
        case 'o': target.socketio = true; break;
        default: return 2;
        }
#ifndef WITH_ZLIB
    if (target.deflate) die(NULL, "built without zlib");
#endif
    if (argc - optind != 3 || with.clients < 1 || with.window < 1 || with.window >= RING || with.parallel < 1)
        die(NULL, "usage: wsload MODE PORT PATH [OPTION...]; see the head of wsload.c");
    target.port = atoi(argv[optind + 1]);
    prepare(argv[optind + 2]);
    make_messages(with.size);
    poll_fd = epoll_create1(0);
    int room = with.clients > with.parallel ? with.clients : with.parallel;
    clients = or_die(calloc(room, sizeof *clients));
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (!strcmp(argv[optind], modes[i].name)) return modes[i].run(), 0;
    die(NULL, "no such mode: %s", argv[optind]);
}
