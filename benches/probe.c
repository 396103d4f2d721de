/*
 * The clock, and the clients that are too quick to be timed from a script.
 *
 *   probe REPORT run DIR COPIES COMMAND…     COPIES of a command at once
 *   probe REPORT stat DIR LIST               lstat of each path in a list
 *   probe REPORT open DIR LIST               open, read and close of each
 *   probe REPORT read DIR FILE               one file from start to end, in pieces of 128 KiB
 *   probe REPORT map DIR FILE                the same through mmap, a word of each page
 *   probe REPORT random DIR FILE JOBS READS  4 KiB reads by JOBS threads, at places that are the same at each run
 *
 * Lists are read, and DIR is entered, before the clock starts. The descriptor REPORT gets a line of JSON: nanoseconds
 * on the wall and of CPU (the commands', if there are any), and `answer`, numbers that are the same wherever the same
 * bytes were read.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, PIECE = 128 * 1024 };

extern char **environ;

static uint64_t count, sum;

static void die(const char *what)
{
    fprintf(stderr, "probe: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static uint64_t used(int who)
{
    struct rusage usage;
    getrusage(who, &usage);
    return ((uint64_t)usage.ru_utime.tv_sec + (uint64_t)usage.ru_stime.tv_sec) * 1000000000 +
           ((uint64_t)usage.ru_utime.tv_usec + (uint64_t)usage.ru_stime.tv_usec) * 1000;
}

static uint64_t word_at(const void *place)
{
    uint64_t word;
    memcpy(&word, place, sizeof word);
    return word;
}

/* The lines of a file, and NULL. */
static char **lines_of(const char *path)
{
    FILE *file = fopen(path, "r");
    if (!file)
        die(path);
    char **lines = NULL, *line = NULL;
    size_t lines_count = 0, size = 0;
    for (;;) {
        ssize_t length = getline(&line, &size, file);
        lines = realloc(lines, (lines_count + 1) * sizeof *lines);
        if (!lines)
            die("memory");
        if (length <= 0)
            break;
        line[length - 1] = '\0';
        lines[lines_count++] = strdup(line);
    }
    lines[lines_count] = NULL;
    fclose(file);
    return lines;
}

static void stat_all(char **paths)
{
    struct stat status;
    for (; *paths; paths++) {
        if (lstat(*paths, &status) == 0) {
            count++;
            sum += S_ISDIR(status.st_mode) ? 0 : (uint64_t)status.st_size;
        } else if (errno != ENOENT) {
            die(*paths);
        }
    }
}

static void open_all(char **paths)
{
    static unsigned char buffer[PIECE];
    for (; *paths; paths++) {
        int file = open(*paths, O_RDONLY);
        if (file < 0)
            die(*paths);
        ssize_t length;
        while ((length = read(file, buffer, sizeof buffer)) > 0) {
            for (ssize_t at = 0; at < length; at++)
                sum = sum * 31 + buffer[at];
            count += (uint64_t)length;
        }
        if (length < 0)
            die(*paths);
        close(file);
    }
}

static void read_file(int file)
{
    static unsigned char buffer[PIECE];
    ssize_t length;
    while ((length = read(file, buffer, sizeof buffer)) > 0) {
        for (ssize_t at = 0; at + PAGE <= length; at += PAGE)
            sum += word_at(buffer + at);
        count += (uint64_t)length;
    }
    if (length < 0)
        die("read");
}

static void map_file(int file, uint64_t size)
{
    unsigned char *content = mmap(NULL, size, PROT_READ, MAP_PRIVATE, file, 0);
    if (content == MAP_FAILED)
        die("mmap");
    for (uint64_t at = 0; at + PAGE <= size; at += PAGE)
        sum += word_at(content + at);
    count = size;
    munmap(content, size);
}

struct job {
    pthread_t thread;
    int file;
    uint64_t pages, reads, seed, sum;
};

/* splitmix64, whose places do not depend on the C library. */
static uint64_t draw(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

static void *read_at_random(void *argument)
{
    struct job *job = argument;
    unsigned char buffer[PAGE];
    for (uint64_t number = 0; number < job->reads; number++) {
        uint64_t page = draw(&job->seed) % job->pages;
        if (pread(job->file, buffer, PAGE, (off_t)(page * PAGE)) != PAGE)
            die("pread");
        job->sum += word_at(buffer);
    }
    return NULL;
}

static void run_jobs(struct job *jobs, uint64_t jobs_count)
{
    for (uint64_t number = 0; number < jobs_count; number++)
        if (pthread_create(&jobs[number].thread, NULL, read_at_random, &jobs[number]))
            die("thread");
    for (uint64_t number = 0; number < jobs_count; number++) {
        pthread_join(jobs[number].thread, NULL);
        sum += jobs[number].sum;
        count += jobs[number].reads;
    }
}

static void run_copies(unsigned long copies, char **command)
{
    for (unsigned long number = 0; number < copies; number++) {
        pid_t child;
        errno = posix_spawnp(&child, command[0], NULL, NULL, command, environ);
        if (errno)
            die(command[0]);
    }
    int status;
    while (wait(&status) > 0)
        count += WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static int report;
static uint64_t start, used_before;

static void begin(void)
{
    used_before = used(RUSAGE_SELF);
    start = now(CLOCK_MONOTONIC);
}

static void end(int who)
{
    uint64_t wall = now(CLOCK_MONOTONIC) - start;
    uint64_t cpu = used(who) - (who == RUSAGE_SELF ? used_before : 0);
    dprintf(report, "{\"wall_ns\": %" PRIu64 ", \"cpu_ns\": %" PRIu64 ", ", wall, cpu);
    dprintf(report, "\"answer\": [%" PRIu64 ", %" PRIu64 "]}\n", count, sum);
}

static int opened(const char *path, uint64_t *size)
{
    struct stat status;
    int file = open(path, O_RDONLY);
    if (file < 0 || fstat(file, &status) < 0)
        die(path);
    *size = (uint64_t)status.st_size;
    return file;
}

int main(int argc, char **argv)
{
    if (argc < 5) {
        errno = EINVAL;
        die("usage: probe REPORT WHAT DIR ARGUMENT…");
    }
    report = atoi(argv[1]);
    const char *what = argv[2];
    int listed = !strcmp(what, "stat") || !strcmp(what, "open");
    char **lines = listed ? lines_of(argv[4]) : NULL;
    uint64_t size;
    if (chdir(argv[3]) < 0)
        die(argv[3]);

    if (!strcmp(what, "run") && argc > 5) {
        fcntl(report, F_SETFD, FD_CLOEXEC);
        begin();
        run_copies(strtoul(argv[4], NULL, 10), argv + 5);
        end(RUSAGE_CHILDREN);
    } else if (!strcmp(what, "stat")) {
        begin();
        stat_all(lines);
        end(RUSAGE_SELF);
    } else if (!strcmp(what, "open")) {
        begin();
        open_all(lines);
        end(RUSAGE_SELF);
    } else if (!strcmp(what, "read")) {
        begin();
        read_file(opened(argv[4], &size));
        end(RUSAGE_SELF);
    } else if (!strcmp(what, "map")) {
        begin();
        int file = opened(argv[4], &size);
        map_file(file, size);
        end(RUSAGE_SELF);
    } else if (!strcmp(what, "random") && argc == 7) {
        uint64_t jobs_count = strtoul(argv[5], NULL, 10);
        uint64_t reads = strtoul(argv[6], NULL, 10);
        struct job *jobs = calloc(jobs_count, sizeof *jobs);
        if (!jobs)
            die("memory");
        begin();
        int file = opened(argv[4], &size);
        uint64_t pages = size / PAGE;
        for (uint64_t number = 0; number < jobs_count; number++)
            jobs[number] = (struct job){.file = file, .pages = pages, .reads = reads, .seed = number};
        run_jobs(jobs, jobs_count);
        end(RUSAGE_SELF);
    } else {
        errno = EINVAL;
        die(what);
    }
    return 0;
}
