// What the C writers share: the format of rows (see ring/format.py), and the conversion of values to words.

#ifndef TENSORMETER_WORDS_H
#define TENSORMETER_WORDS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stddef.h>
#include <string.h>
#include <structmember.h>
#include <time.h>

#define EXACT_INT (INT64_C(1) << 53)  // every integer up to this magnitude is exact as float64
#define HEAD_WORDS 3                  // mark, time, step
#define TIMED_CALLS 64                // one call in 64 is timed
#define SHORTEST_DURATION_BITS 6
#define DURATION_BUCKETS 26

// Convert a Python number to the word of a column. Returns 0 if the type is unexpected or the integer is too large.
static inline int
as_plain_word(PyObject *value, char code, int64_t *word)
{
    double number;
    if (code == 'd' && PyFloat_CheckExact(value)) {
        number = PyFloat_AS_DOUBLE(value);
    } else if (PyLong_CheckExact(value)) {
        int overflow;
        const int64_t integer = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (code != 'd') {
            *word = integer;
            return !overflow;
        }
        if (overflow || integer < -EXACT_INT || integer > EXACT_INT) {
            return 0;
        }
        number = (double)integer;
    } else if (code == 'd' && PyBool_Check(value)) {
        number = value == Py_True;
    } else {
        return 0;
    }
    memcpy(word, &number, sizeof number);
    return 1;
}

// The same for a NumPy scalar. NumPy's own types are static and their conversions are C functions, so no Python code runs.
static int
as_numpy_word(PyObject *value, char code, int64_t *word)
{
    const PyTypeObject *type = Py_TYPE(value);
    if ((type->tp_flags & Py_TPFLAGS_HEAPTYPE) || type->tp_as_number == NULL || strncmp(type->tp_name, "numpy.", 6) != 0) {
        return 0;
    }
    const char *name = type->tp_name + 6;
    unaryfunc convert = NULL;
    if (strncmp(name, "float", 5) == 0) {
        convert = type->tp_as_number->nb_float;
    } else if (strncmp(name, "int", 3) == 0 || strncmp(name, "uint", 4) == 0) {
        convert = type->tp_as_number->nb_int;
    }
    PyObject *number = convert == NULL ? NULL : convert(value);
    if (number == NULL) {
        PyErr_Clear();
        return 0;
    }
    const int converted = as_plain_word(number, code, word);
    Py_DECREF(number);
    return converted;
}

// Convert one value to the word of a column. Returns 0 if the type is unexpected or the integer is too large.
static inline int
as_word(PyObject *value, char code, int64_t *word)
{
    return as_plain_word(value, code, word) || as_numpy_word(value, code, word);
}

static inline int64_t
nanoseconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

// Count the duration of a call. `words` are the ring's words for the durations of direct calls.
static inline void
count_duration(int64_t *words, int64_t duration)
{
    const int bits = duration > 1 ? 64 - __builtin_clzll((unsigned long long)duration - 1) : 0;
    int bucket = bits < SHORTEST_DURATION_BITS ? 0 : bits - SHORTEST_DURATION_BITS;
    if (bucket >= DURATION_BUCKETS) {
        bucket = DURATION_BUCKETS - 1;
    }
    words[0] += duration;
    words[1 + bucket]++;
}

// Get a writable buffer of at least `least` aligned words. Returns 0, or -1 after an error.
static inline int
words_of(PyObject *object, Py_buffer *buffer, Py_ssize_t least, const char *name)
{
    if (PyObject_GetBuffer(object, buffer, PyBUF_WRITABLE) < 0) {
        return -1;
    }
    if (buffer->len < least * (Py_ssize_t)sizeof(int64_t) || (uintptr_t)buffer->buf % sizeof(int64_t)) {
        PyErr_Format(PyExc_ValueError, "%s: expected at least %zd aligned words of 8 bytes", name, least);
        return -1;
    }
    return 0;
}

// Check the offset of the call durations in the ring. Returns 0, or -1 after an error.
static inline int
check_durations(const Py_buffer *ring, Py_ssize_t durations)
{
    const Py_ssize_t word = (Py_ssize_t)sizeof(int64_t);
    if (durations < 0 || durations % word || durations > ring->len - (1 + DURATION_BUCKETS) * word) {
        PyErr_Format(PyExc_ValueError, "durations: offset %zd is not in the ring", durations);
        return -1;
    }
    return 0;
}

// Get the identifier of the only thread that may write, or whether any thread may (None). Returns 0, or -1 after an error.
static inline int
owner_of(PyObject *object, unsigned long *owner, int *shared)
{
    *shared = object == Py_None;
    if (!*shared) {
        *owner = PyLong_AsUnsignedLong(object);
    }
    return PyErr_Occurred() ? -1 : 0;
}

// Get the step and the other arguments of a call ``writer(values, step=None)``. Returns 0 if there are other arguments.
static inline int
parse_call(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, PyObject *step_name, PyObject **given)
{
    if (nargs == 2 && kwnames == NULL) {
        *given = args[1];
    } else if (nargs == 1 && kwnames != NULL && PyTuple_GET_SIZE(kwnames) == 1
               && PyTuple_GET_ITEM(kwnames, 0) == step_name) {
        *given = args[1];
    } else if (nargs != 1 || kwnames != NULL) {
        return 0;
    }
    if (*given == Py_None) {
        *given = NULL;
    }
    return 1;
}

#endif
