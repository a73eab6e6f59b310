/* The least a live slot can be: read a command, spawn a shell for it, read its output, reap it, answer.
 *
 * Runs as the first process of a sandbox, with the driver's stream as standard input. A request is a line, the answer
 * is one byte. No deadline, no limit on output, no protection of any kind: this is a floor to measure against.
 */
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define STREAM 0

extern char **environ;

static int read_line(char *line, size_t size)
{
    size_t length = 0;
    while (length < size - 1) {
        ssize_t got = read(STREAM, line + length, size - 1 - length);
        if (got <= 0)
            return -1;
        length += (size_t)got;
        if (line[length - 1] == '\n') {
            line[length - 1] = '\0';
            return 0;
        }
    }
    return -1;
}

static int run(char *command)
{
    char *arguments[] = {"bash", "-c", command, NULL};
    posix_spawn_file_actions_t actions;
    char output[65536];
    int ends[2], status = 0;
    pid_t pid;

    if (pipe2(ends, O_CLOEXEC) != 0)
        return -1;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 2);
    int failed = posix_spawn(&pid, "/bin/bash", &actions, NULL, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    if (!failed) {
        while (read(ends[0], output, sizeof output) > 0)
            ;
        waitpid(pid, &status, 0);
    }
    close(ends[0]);
    return failed ? -1 : status;
}

int main(void)
{
    char line[4096];

    while (read_line(line, sizeof line) == 0) {
        char answer = run(line) == 0 ? '.' : '!';
        if (write(STREAM, &answer, 1) != 1)
            return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
