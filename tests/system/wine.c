// What Wine lacks, shown without Veloq: one line for each thing that tests leave out there (`wine.rs` beside this). `scripts/windows lacks`
// builds and runs it. Where a line begins with "Wine has" a newer Wine has learned it, and the test can have its part back.

#include <winsock2.h>
#include <ws2tcpip.h>
#include <mstcpip.h>

#include <stdio.h>
#include <stdlib.h>

#ifndef TCP_KEEPCNT
#define TCP_KEEPCNT 16
#endif

static void say(int has, const char *what) {
    printf("Wine %s %s\n", has ? "has now:" : "still lacks:", what);
    fflush(stdout);
}

// A connection, both ends.
static void pair(SOCKET *one, SOCKET *two) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int len = sizeof address;
    SOCKET listener = socket(AF_INET, SOCK_STREAM, 0);
    bind(listener, (struct sockaddr *)&address, len);
    listen(listener, 1);
    getsockname(listener, (struct sockaddr *)&address, &len);
    *one = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(*one, (struct sockaddr *)&address, len) != 0) {
        printf("loopback cannot be connected: %d\n", WSAGetLastError());
        exit(1);
    }
    *two = accept(listener, NULL, NULL);
    closesocket(listener);
}

static int has_number_of_probes(void) {
    int probes = 5;
    SOCKET stream = socket(AF_INET, SOCK_STREAM, 0);
    return setsockopt(stream, IPPROTO_TCP, TCP_KEEPCNT, (char *)&probes, sizeof probes) == 0;
}

static int has_reset_before_a_read(void) {
    SOCKET one, two;
    char byte;
    struct linger at_once = {1, 0};
    pair(&one, &two);
    setsockopt(two, SOL_SOCKET, SO_LINGER, (char *)&at_once, sizeof at_once);
    closesocket(two);
    Sleep(100);
    return recv(one, &byte, 1, 0) != 0;
}

// A send of more than the system holds waits, beside a receive, when the peer closes its half, which is no reason to end it.
static int has_sends_that_outlast_half_a_close(void) {
    enum { LEN = 64 << 20 };
    SOCKET one, two;
    pair(&one, &two);
    HANDLE port = CreateIoCompletionPort((HANDLE)one, NULL, 0, 1);
    static char room[1];
    static OVERLAPPED receive, send;
    WSABUF into = {sizeof room, room}, from = {LEN, calloc(1, LEN)};
    DWORD flags = 0, sent = LEN;
    WSARecv(one, &into, 1, NULL, &flags, &receive, NULL);
    WSASend(one, &from, 1, NULL, 0, &send, NULL);
    Sleep(100);
    shutdown(two, SD_SEND);
    for (;;) {
        DWORD bytes;
        ULONG_PTR key;
        OVERLAPPED *done = NULL;
        BOOL ok = GetQueuedCompletionStatus(port, &bytes, &key, &done, 500);
        if (done == NULL) {
            return 1; // It still waits, as it should.
        }
        if (done == &send) {
            return !ok || bytes == sent;
        }
    }
}

int main(void) {
    WSADATA data;
    WSAStartup(MAKEWORD(2, 2), &data);
    say(has_number_of_probes(), "TCP_KEEPCNT");
    say(has_reset_before_a_read(), "a reset that comes before the read is an error to it");
    say(has_sends_that_outlast_half_a_close(), "a peer that closes its half leaves a send alone that waits beside a receive");
    return 0;
}
