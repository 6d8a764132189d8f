// Handling of SIGTERM while Python cannot run its handler, because native code keeps the main thread busy.
//
// Python's own C handler only sets a flag. Our handler wraps it, and first stores the time where the agent can read it, so
// that a process that is killed later counts as preempted rather than crashed. If the default action of SIGTERM would have
// ended the process, a timer repeats the signal, which interrupts a call that began to block just when the first signal
// arrived. If Python's handler has still not run after the limit, the signal ends the process.
//
// All code in the handler is async-signal-safe. Timers belong to one process, so a forked child has none.

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MARKS 16
#define AGAIN_NANOSECONDS 250000000

typedef struct {
    Py_buffer buffer;
    int64_t *volatile word;     // NULL if the entry is free
} Mark;

static Mark marks[MARKS];
static struct sigaction python;             // Python's action, which ours wraps
static timer_t timer;
static pid_t owner;                         // the process that created the timer
static struct timespec limit;               // 0 to never end the process
static struct timespec deadline;
static volatile sig_atomic_t unanswered;

static void
set_timer(long nanoseconds)
{
    struct itimerspec again = {{0, nanoseconds}, {0, nanoseconds}};
    timer_settime(timer, 0, &again, NULL);
}

static int
is_over(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec > deadline.tv_sec || (now.tv_sec == deadline.tv_sec && now.tv_nsec >= deadline.tv_nsec);
}

static void
store_time(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    for (int i = 0; i < MARKS; i++) {
        int64_t *word = marks[i].word;
        if (word && !*word)
            *word = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    }
}

static void
begin_limit(void)
{
    clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec += limit.tv_sec;
    deadline.tv_nsec += limit.tv_nsec;
    if (deadline.tv_nsec >= 1000000000) {
        deadline.tv_sec += 1;
        deadline.tv_nsec -= 1000000000;
    }
    unanswered = 1;
    set_timer(AGAIN_NANOSECONDS);
}

static void
die(void)
{
    struct sigaction by_default = {.sa_handler = SIG_DFL};
    sigaction(SIGTERM, &by_default, NULL);
    kill(owner, SIGTERM);
}

static void
handle(int number, siginfo_t *info, void *context)
{
    (void)context;
    int error = errno;
    if (getpid() != owner) {
        python.sa_handler(number);
    } else if (info->si_code == SI_TIMER && info->si_value.sival_ptr == &timer) {
        if (unanswered && is_over())
            die();
    } else {
        store_time();
        if ((limit.tv_sec || limit.tv_nsec) && !unanswered)
            begin_limit();
        python.sa_handler(number);
    }
    errno = error;
}

static void
free_mark(int i)
{
    if (marks[i].word) {
        marks[i].word = NULL;
        PyBuffer_Release(&marks[i].buffer);
    }
}

PyDoc_STRVAR(watch_doc,
"watch(limit: float) -> None\n\n"
"Wrap the handler that `signal.signal` has just set for SIGTERM. Main thread only.\n\n"
"limit: Seconds after which a SIGTERM that was not `answered` ends the process; 0 for never.\n"
"Raise OSError if the system has no timer left.");

static PyObject *
watch(PyObject *self, PyObject *argument)
{
    (void)self;
    double seconds = PyFloat_AsDouble(argument);
    if (seconds == -1.0 && PyErr_Occurred())
        return NULL;
    if (owner != getpid()) {
        struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGTERM, .sigev_value.sival_ptr = &timer};
        event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
        if (timer_create(CLOCK_MONOTONIC, &event, &timer))
            return PyErr_SetFromErrno(PyExc_OSError);
        for (int i = 0; i < MARKS; i++)
            free_mark(i);  // it was copied from the parent
        owner = getpid();
    }
    set_timer(0);
    unanswered = 0;
    limit.tv_sec = (time_t)seconds;
    limit.tv_nsec = (long)((seconds - (double)limit.tv_sec) * 1e9);
    struct sigaction now;
    sigaction(SIGTERM, NULL, &now);
    if (!(now.sa_flags & SA_SIGINFO) && now.sa_handler != SIG_DFL && now.sa_handler != SIG_IGN) {
        python = now;
        now.sa_flags |= SA_SIGINFO;
        now.sa_sigaction = handle;
        sigaction(SIGTERM, &now, NULL);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(answered_doc,
"answered() -> None\n\n"
"Stop the timer, because Python's handler has begun to run.");

static PyObject *
answered(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    if (owner == getpid()) {
        unanswered = 0;
        set_timer(0);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(mark_doc,
"mark(word) -> None\n\n"
"Store the time of a SIGTERM, in nanoseconds since the Unix epoch, in this buffer of one int64 too, if it contains 0.\n"
"Do nothing if `watch` was not called in this process, or if sixteen buffers are already marked.");

static PyObject *
mark(PyObject *self, PyObject *argument)
{
    (void)self;
    for (int i = 0; owner == getpid() && i < MARKS; i++) {
        if (marks[i].word)
            continue;
        if (PyObject_GetBuffer(argument, &marks[i].buffer, PyBUF_WRITABLE))
            return NULL;
        if (marks[i].buffer.len != sizeof(int64_t)) {
            PyBuffer_Release(&marks[i].buffer);
            PyErr_SetString(PyExc_ValueError, "expected a buffer of 8 bytes");
            return NULL;
        }
        marks[i].word = marks[i].buffer.buf;
        break;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(unmark_doc,
"unmark(word) -> None\n\n"
"Stop storing the time of a SIGTERM in this buffer.");

static PyObject *
unmark(PyObject *self, PyObject *argument)
{
    (void)self;
    Py_buffer buffer;
    if (PyObject_GetBuffer(argument, &buffer, PyBUF_SIMPLE))
        return NULL;
    for (int i = 0; i < MARKS; i++) {
        if (marks[i].word == buffer.buf)
            free_mark(i);
    }
    PyBuffer_Release(&buffer);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"watch", watch, METH_O, watch_doc},
    {"answered", answered, METH_NOARGS, answered_doc},
    {"mark", mark, METH_O, mark_doc},
    {"unmark", unmark, METH_O, unmark_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "tensormeter.session.exit_hooks._sigterm",
    .m_doc = "Handles SIGTERM while Python cannot run its handler.",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC
PyInit__sigterm(void)
{
    return PyModule_Create(&module);
}
