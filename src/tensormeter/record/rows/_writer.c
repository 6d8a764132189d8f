// The C implementation of a lane's writer. It is ten times as fast as the Python code from `Lane._generate_writer`.
//
// A Writer is called as ``writer(values, step=None)``, and writes one row with its layout. It passes the call on to `fallback`
// if the keys, types or arguments are unexpected, if another thread calls it, or if the lane has no room.
//
// No Python code runs between reading the cursor and publishing the row, and the GIL is held throughout. Another thread, or a
// signal handler that logs, can therefore run only before or after the write.
// The final mark is stored after all other words, with release order, so a reader that sees it can read the whole row.

#include "_words.h"

#define LOCAL_WORDS 64

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *attributes;   // __dict__
    PyObject *weak;
    PyObject *keys;         // tuple of str, in the order of the columns
    PyObject *fallback;     // called with the writer's own arguments
    PyObject *make_room;    // make_room(bytes) -> bool: raise the cursor's limit to cover a row
    Py_buffer ring;
    Py_buffer codes;        // one code per column: b'd' (float64) or b'q' (int64)
    Py_buffer cursor;       // int64: offset of the next row, limit, mark of the next row without its layout
    Py_buffer last_step;    // int64
    Py_ssize_t size;        // bytes of a row
    int64_t layout;
    int64_t advance;        // increment of the mark per row
    unsigned long owner;    // the only thread that may write
    int shared;             // whether any thread may write, one at a time
    Py_ssize_t durations;   // offset of the call durations in the ring
    unsigned calls;
} Writer;

static PyObject *step_name;  // "step", interned

// Convert all values to words. Returns 1 on success, 0 if a key is missing or a value does not fit, or -1 after an error.
static int
gather(const Writer *self, PyObject *values, int64_t *words)
{
    const char *codes = self->codes.buf;
    const Py_ssize_t count = self->codes.len;
    PyObject *key, *value;
    Py_ssize_t position = 0, column = 0;
    // In most calls, the keys are the same objects in the same order.
    while (column < count && PyDict_Next(values, &position, &key, &value)) {
        if (key != PyTuple_GET_ITEM(self->keys, column)) {
            break;
        }
        if (!as_word(value, codes[column], &words[column])) {
            return 0;
        }
        column++;
    }
    for (; column < count; column++) {
        value = PyDict_GetItemWithError(values, PyTuple_GET_ITEM(self->keys, column));
        if (value == NULL) {
            return PyErr_Occurred() ? -1 : 0;
        }
        if (!as_word(value, codes[column], &words[column])) {
            return 0;
        }
    }
    return 1;
}

// Make room for a row. Returns 1 on success, 0 if there is no room, or -1 after an error. May run any Python code.
static int
ensure_room(const Writer *self)
{
    const int64_t *cursor = self->cursor.buf;
    while (cursor[0] + self->size > cursor[1]) {
        PyObject *made = PyObject_CallFunction(self->make_room, "n", self->size);
        if (made == NULL) {
            return -1;
        }
        int truth = PyObject_IsTrue(made);
        Py_DECREF(made);
        if (truth <= 0) {
            return truth;
        }
    }
    return 1;
}

static void
write_row(Writer *self, int64_t step, const int64_t *words)
{
    int64_t *cursor = self->cursor.buf;
    const Py_ssize_t count = self->codes.len;
    const int64_t offset = cursor[0], mark = cursor[2] | self->layout;
    int64_t *row = (int64_t *)((char *)self->ring.buf + offset);
    row[0] = mark;
    row[1] = nanoseconds(CLOCK_REALTIME);
    row[2] = step;
    memcpy(row + HEAD_WORDS, words, (size_t)count * sizeof *words);
    __atomic_store_n(row + HEAD_WORDS + count, mark, __ATOMIC_RELEASE);
    cursor[0] = offset + self->size;
    cursor[2] += self->advance;
    *(int64_t *)self->last_step.buf = step;
}

static PyObject *
Writer_vectorcall(PyObject *object, PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    Writer *self = (Writer *)object;
    const Py_ssize_t nargs = PyVectorcall_NARGS(nargsf);
    const Py_ssize_t count = self->codes.len;
    int64_t local[LOCAL_WORDS], *words = local, step = 0;
    PyObject *given = NULL;
    int done = 0;
    const int timed = ++self->calls % TIMED_CALLS == 0;
    const int64_t start = timed ? nanoseconds(CLOCK_MONOTONIC) : 0;

    if (!parse_call(args, nargs, kwnames, step_name, &given)) {
        goto fall_back;
    }
    // Accept only a plain dict, because looking up str keys in a plain dict runs no Python code.
    if (!PyDict_CheckExact(args[0]) || PyDict_GET_SIZE(args[0]) != count) {
        goto fall_back;
    }
    if (!self->shared && PyThread_get_thread_ident() != self->owner) {
        goto fall_back;
    }
    if (given != NULL && !as_word(given, 'q', &step)) {
        goto fall_back;
    }
    if (count > LOCAL_WORDS) {
        words = PyMem_Malloc((size_t)count * sizeof *words);
        if (words == NULL) {
            return PyErr_NoMemory();
        }
    }
    done = gather(self, args[0], words);
    if (done == 1) {
        done = ensure_room(self);
    }
    if (done == 1 && given == NULL) {
        const int64_t last = *(const int64_t *)self->last_step.buf;
        step = last + 1;
        done = last != INT64_MAX;
    }
    if (done == 1) {
        write_row(self, step, words);
        if (timed) {
            count_duration((int64_t *)((char *)self->ring.buf + self->durations), nanoseconds(CLOCK_MONOTONIC) - start);
        }
    }
    if (words != local) {
        PyMem_Free(words);
    }
    if (done == 1) {
        Py_RETURN_NONE;
    }
    if (done < 0) {
        return NULL;
    }
fall_back:
    return PyObject_Vectorcall(self->fallback, args, nargs, kwnames);
}

static PyObject *
Writer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"ring", "cursor", "last_step", "keys", "codes", "layout", "advance", "owner",
                            "make_room", "fallback", "durations", NULL};
    PyObject *ring, *cursor, *last_step, *keys, *codes, *owner, *make_room, *fallback;
    long long layout, advance;
    Py_ssize_t durations;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "$OOOO!SLLOOOn", names, &ring, &cursor, &last_step, &PyTuple_Type,
                                     &keys, &codes, &layout, &advance, &owner, &make_room, &fallback,
                                     &durations)) {
        return NULL;
    }
    Writer *self = (Writer *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->vectorcall = Writer_vectorcall;
    if (words_of(ring, &self->ring, 1, "ring") < 0 || words_of(cursor, &self->cursor, 3, "cursor") < 0
        || words_of(last_step, &self->last_step, 1, "last_step") < 0
        || PyObject_GetBuffer(codes, &self->codes, PyBUF_SIMPLE) < 0) {
        goto fail;
    }
    if (check_durations(&self->ring, durations) < 0) {
        goto fail;
    }
    self->durations = durations;
    if (PyTuple_GET_SIZE(keys) != self->codes.len) {
        PyErr_Format(PyExc_ValueError, "codes: expected one for each of %zd keys", PyTuple_GET_SIZE(keys));
        goto fail;
    }
    for (Py_ssize_t i = 0; i < self->codes.len; i++) {
        const char code = ((const char *)self->codes.buf)[i];
        if (!PyUnicode_CheckExact(PyTuple_GET_ITEM(keys, i)) || (code != 'd' && code != 'q')) {
            PyErr_Format(PyExc_ValueError, "column %zd: expected a str and one of b'dq'", i);
            goto fail;
        }
    }
    if (owner_of(owner, &self->owner, &self->shared) < 0) {
        goto fail;
    }
    self->keys = Py_NewRef(keys);
    self->make_room = Py_NewRef(make_room);
    self->fallback = Py_NewRef(fallback);
    self->size = (HEAD_WORDS + self->codes.len + 1) * (Py_ssize_t)sizeof(int64_t);
    self->layout = layout;
    self->advance = advance;
    return (PyObject *)self;
fail:
    Py_DECREF(self);
    return NULL;
}

static int
Writer_traverse(PyObject *object, visitproc visit, void *arg)
{
    Writer *self = (Writer *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->attributes);
    Py_VISIT(self->fallback);
    Py_VISIT(self->make_room);
    return 0;
}

static int
Writer_clear(PyObject *object)
{
    // Clear only members that can be part of a cycle and that no call needs, because the writer may still be called.
    Py_CLEAR(((Writer *)object)->attributes);
    return 0;
}

static void
Writer_dealloc(PyObject *object)
{
    Writer *self = (Writer *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    if (self->weak != NULL) {
        PyObject_ClearWeakRefs(object);
    }
    Py_CLEAR(self->attributes);
    Py_CLEAR(self->keys);
    Py_CLEAR(self->fallback);
    Py_CLEAR(self->make_room);
    PyBuffer_Release(&self->ring);
    PyBuffer_Release(&self->codes);
    PyBuffer_Release(&self->cursor);
    PyBuffer_Release(&self->last_step);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyMemberDef Writer_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Writer, vectorcall), READONLY, NULL},
    {"__dictoffset__", T_PYSSIZET, offsetof(Writer, attributes), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Writer, weak), READONLY, NULL},
    {NULL},
};

static PyType_Slot Writer_slots[] = {
    {Py_tp_new, Writer_new},
    {Py_tp_dealloc, Writer_dealloc},
    {Py_tp_traverse, Writer_traverse},
    {Py_tp_clear, Writer_clear},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_members, Writer_members},
    {Py_tp_doc, "A function that writes rows with one layout to one lane."},
    {0, NULL},
};

static PyType_Spec Writer_spec = {
    .name = "tensormeter.record.rows._writer.Writer",
    .basicsize = sizeof(Writer),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Writer_slots,
};

static int
module_exec(PyObject *module)
{
    step_name = PyUnicode_InternFromString("step");
    if (step_name == NULL) {
        return -1;
    }
    PyObject *type = PyType_FromModuleAndSpec(module, &Writer_spec, NULL);
    if (type == NULL) {
        return -1;
    }
    int failed = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return failed;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "tensormeter.record.rows._writer",
    .m_doc = "C implementation of a lane's writer.",
    .m_slots = module_slots,
};

PyMODINIT_FUNC
PyInit__writer(void)
{
    return PyModuleDef_Init(&module);
}
