// The C implementation of a lane's row writer (see python_row_writer.py for the same in Python).
//
// A RowWriter is called as ``writer(values, step=None)``, and writes one row of numbers. It handles any combination of known
// names. A combination with a layout costs 8 bytes and one comparison per value; other combinations describe their own columns,
// which takes 16 bytes and finding the name's number. Everything else is passed on to `fallback`: unknown names, values that are
// not plain numbers, other arguments, calls from other threads, and calls after the lane was closed.
//
// No Python code runs between reading the cursor and publishing the row, and the GIL is held throughout. Another thread, or a
// signal handler that logs, can therefore run only before or after the write, or in a callback. After a callback, everything is
// read again.
// The final mark is stored after all other words, with release order, so a reader that sees it can read the whole row.

#include "_words.h"

#define ITEMS_HEAD_WORDS 4   // mark, time, step, number of columns and words
#define ITEMS INT64_C(0xFFFD)
#define STREAM_SHIFT 32
#define ITEM_CODE_BITS 8
#define POSITION_SHIFT 13
#define ABANDONED INT64_C(-1)
#define GUESSES 4            // names that are compared before the name is looked up
#define SEEN 4096            // combinations of columns whose rows are counted at the same time; a power of two

enum { FAILED = -1, UNUSUAL = 0, WRITTEN = 1 };

// The columns of a layout.
typedef struct {
    uint64_t hash;
    PyObject *keys;          // tuple of str
    int64_t *headers;        // what a row without a layout would have as its headers
    Py_ssize_t count;
    Py_ssize_t size;         // bytes of a row
    int64_t layout;
} Columns;

typedef struct {
    uint64_t hash;
    unsigned rows;
} Seen;

typedef struct {
    PyObject_HEAD
    PyObject *names;         // list: name by number; an object that is no key for numbers that are not of plain gauges
    PyObject *numbers;       // dict: number by name
    PyObject *add_layout;    // add_layout(names, codes) -> int: number of the layout, or 0 if there is none
    Columns **table;         // open addressing
    size_t slots;            // a power of two
    size_t layouts;
    size_t first;            // number of layouts that are added for the first row with their columns
    Py_ssize_t few;          // maximum number of columns of these layouts
    unsigned frequent;       // number of rows after which their columns get a layout
    Seen seen[SEEN];
    uint32_t *next;          // by number of a name: number of the name that comes next in rows
    Py_ssize_t known;        // length of `next`
} KeySets;

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *attributes;    // __dict__
    PyObject *weak;
    KeySets *sets;
    PyObject *fallback;      // called with the writer's own arguments
    PyObject *make_room;     // make_room(bytes) -> bool: raise the cursor's limit to cover a row
    PyObject *on_full;       // on_full(values): count values for which the lane has no room
    Py_buffer ring;
    Py_buffer cursor;        // int64: offset of the next row, limit, mark of the next row without its layout
    Py_buffer last_step;     // int64
    Columns *columns;        // of the last row with a layout
    Py_ssize_t most_bytes;   // maximum size of a row
    Py_ssize_t guess;        // number of the first name of the last row
    int64_t *headers;        // of a row that is written in parts
    int64_t *words;
    Py_ssize_t capacity;
    unsigned long owner;     // the only thread that may write
    int shared;              // whether any thread may write, one at a time
    char direct;             // whether calls may write; otherwise all calls use `fallback`
    Py_ssize_t durations;    // offset of the call durations in the ring
    unsigned calls;
} RowWriter;

typedef struct {
    PyTypeObject *sets_type;
} State;

static PyObject *step_name;  // "step", interned

// Combinations of columns

static inline uint64_t
hash_of(const int64_t *headers, Py_ssize_t count)
{
    uint64_t hash = (uint64_t)count;
    for (Py_ssize_t i = 0; i < count; i++) {
        hash = (hash ^ (uint64_t)headers[i]) * UINT64_C(0x9E3779B97F4A7C15);
        hash ^= hash >> 29;
    }
    return hash;
}

static Columns *
find_columns(const KeySets *sets, uint64_t hash, const int64_t *headers, Py_ssize_t count)
{
    if (sets->slots == 0) {
        return NULL;
    }
    for (size_t slot = hash & (sets->slots - 1); sets->table[slot] != NULL; slot = (slot + 1) & (sets->slots - 1)) {
        Columns *columns = sets->table[slot];
        if (columns->hash == hash && columns->count == count
            && memcmp(columns->headers, headers, (size_t)count * sizeof *headers) == 0) {
            return columns;
        }
    }
    return NULL;
}

static void
place_columns(Columns **table, size_t slots, Columns *columns)
{
    size_t slot = columns->hash & (slots - 1);
    while (table[slot] != NULL) {
        slot = (slot + 1) & (slots - 1);
    }
    table[slot] = columns;
}

static int
insert_columns(KeySets *sets, Columns *columns)
{
    if (2 * (sets->layouts + 1) > sets->slots) {
        const size_t slots = sets->slots ? 2 * sets->slots : 256;
        Columns **table = PyMem_Calloc(slots, sizeof *table);
        if (table == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        for (size_t slot = 0; slot < sets->slots; slot++) {
            if (sets->table[slot] != NULL) {
                place_columns(table, slots, sets->table[slot]);
            }
        }
        PyMem_Free(sets->table);
        sets->table = table;
        sets->slots = slots;
    }
    place_columns(sets->table, sets->slots, columns);
    sets->layouts++;
    return 0;
}

static void
free_columns(Columns *columns)
{
    Py_XDECREF(columns->keys);
    PyMem_Free(columns->headers);
    PyMem_Free(columns);
}

// Count a row without a layout, and return whether its columns should get one.
static int
wants_layout(KeySets *sets, uint64_t hash, Py_ssize_t count)
{
    if (sets->layouts < sets->first && count <= sets->few) {
        return 1;
    }
    Seen *seen = &sets->seen[hash & (SEEN - 1)];
    if (seen->hash != hash) {
        seen->hash = hash;
        seen->rows = 0;
    }
    if (++seen->rows < sets->frequent) {
        return 0;
    }
    seen->rows = 0;
    return 1;
}

// Add a layout for a row's columns, unless `add_layout` declines. Returns 0, or -1 after an error. May run any Python code.
static int
add_columns(KeySets *sets, PyObject *values, uint64_t hash, const int64_t *headers, Py_ssize_t count)
{
    int failed = -1;
    PyObject *keys = NULL, *codes = NULL, *number = NULL;
    Columns *columns = PyMem_Calloc(1, sizeof *columns);
    char *letters = PyMem_Malloc((size_t)count);
    if (columns == NULL || letters == NULL
        || (columns->headers = PyMem_Malloc((size_t)count * sizeof *headers)) == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    memcpy(columns->headers, headers, (size_t)count * sizeof *headers);
    keys = PyTuple_New(count);
    if (keys == NULL) {
        goto end;
    }
    PyObject *key, *value;
    Py_ssize_t position = 0;
    for (Py_ssize_t i = 0; i < count && PyDict_Next(values, &position, &key, &value); i++) {
        PyTuple_SET_ITEM(keys, i, Py_NewRef(key));
        letters[i] = (char)(headers[i] & 0xFF);
    }
    codes = PyUnicode_FromStringAndSize(letters, count);
    if (codes == NULL) {
        goto end;
    }
    number = PyObject_CallFunctionObjArgs(sets->add_layout, keys, codes, NULL);
    if (number == NULL) {
        goto end;
    }
    columns->layout = PyLong_AsLongLong(number);
    if (columns->layout == -1 && PyErr_Occurred()) {
        goto end;
    }
    if (columns->layout == 0) {
        sets->first = 0;  // from now on, ask only for frequent columns
        failed = 0;
    } else if (find_columns(sets, hash, columns->headers, count) != NULL) {  // a signal handler has added it
        failed = 0;
    } else {
        columns->hash = hash;
        columns->count = count;
        columns->size = (HEAD_WORDS + count + 1) * (Py_ssize_t)sizeof(int64_t);
        columns->keys = Py_NewRef(keys);
        failed = insert_columns(sets, columns);
        if (!failed) {
            columns = NULL;
        }
    }
end:
    if (columns != NULL) {
        free_columns(columns);
    }
    PyMem_Free(letters);
    Py_XDECREF(keys);
    Py_XDECREF(codes);
    Py_XDECREF(number);
    return failed;
}

// Rows

// Note that the name `number` has come after the name `before`, so that it is found there next time. The names form a chain in
// the order in which rows have them, and rows may leave out some.
static void
learn(KeySets *sets, Py_ssize_t before, Py_ssize_t number)
{
    if (before < 0 || before > UINT32_MAX - 1 || number > UINT32_MAX - 1) {
        return;
    }
    const Py_ssize_t known = PyList_GET_SIZE(sets->names);
    if (known > sets->known) {
        uint32_t *next = PyMem_Realloc(sets->next, (size_t)(2 * known) * sizeof *next);
        if (next == NULL) {
            return;  // names are looked up instead
        }
        for (Py_ssize_t i = sets->known; i < 2 * known; i++) {
            next[i] = (uint32_t)i + 1;
        }
        sets->next = next;
        sets->known = 2 * known;
    }
    if (sets->next[number] == number + 1) {
        sets->next[number] = sets->next[before];
    }
    sets->next[before] = (uint32_t)number;
}

// Return the number of a name that comes after the name `before` (-1 for none) in a row; -1 if it has none, or -2 after an error.
static inline Py_ssize_t
number_of(KeySets *sets, PyObject *key, Py_ssize_t before, Py_ssize_t guess)
{
    const Py_ssize_t known = PyList_GET_SIZE(sets->names);
    for (Py_ssize_t i = 0, number = guess; i < GUESSES && number < known; i++) {
        if (PyList_GET_ITEM(sets->names, number) == key) {
            return number;
        }
        number = number < sets->known ? (Py_ssize_t)sets->next[number] : number + 1;
    }
    for (Py_ssize_t number = before + 1; number <= before + GUESSES && number < known; number++) {
        if (PyList_GET_ITEM(sets->names, number) == key) {
            return number;
        }
    }
    if (!PyUnicode_CheckExact(key)) {
        return -1;
    }
    PyObject *found = PyDict_GetItemWithError(sets->numbers, key);
    if (found == NULL) {
        return PyErr_Occurred() ? -2 : -1;
    }
    const Py_ssize_t number = PyLong_AsSsize_t(found);
    learn(sets, before, number);
    return number;
}

// Make the buffers for headers and words large enough. Returns 0, or -1 after an error.
static int
reserve(RowWriter *self, Py_ssize_t count)
{
    if (count > self->capacity) {
        const size_t bytes = (size_t)count * sizeof(int64_t);
        int64_t *headers = PyMem_Realloc(self->headers, bytes);
        self->headers = headers == NULL ? self->headers : headers;
        int64_t *words = headers == NULL ? NULL : PyMem_Realloc(self->words, bytes);
        self->words = words == NULL ? self->words : words;
        if (words == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        self->capacity = count;
    }
    return 0;
}

// Collect the headers and words of a row. Returns WRITTEN, UNUSUAL or FAILED. Runs no Python code.
static int
gather(RowWriter *self, PyObject *values, int64_t *headers, int64_t *words)
{
    const Py_ssize_t count = PyDict_GET_SIZE(values);
    PyObject *key, *value;
    KeySets *sets = self->sets;
    Py_ssize_t position = 0, i = 0, before = -1, guess = self->guess;
    while (i < count && PyDict_Next(values, &position, &key, &value)) {
        const Py_ssize_t number = number_of(sets, key, before, guess);
        if (number < 0) {
            return number == -1 ? UNUSUAL : FAILED;
        }
        int64_t code = 'd';
        if (!as_word(value, 'd', &words[i])) {
            code = 'q';
            if (!as_word(value, 'q', &words[i])) {
                return UNUSUAL;
            }
        }
        headers[i] = (int64_t)number << STREAM_SHIFT | INT64_C(1) << ITEM_CODE_BITS | code;
        if (i++ == 0) {
            self->guess = number;
        }
        before = number;
        guess = number < sets->known ? (Py_ssize_t)sets->next[number] : number + 1;
    }
    return i == count ? WRITTEN : UNUSUAL;
}

// Store the values directly in the ring if they have the given columns. Returns 0 if they have not. Nothing is published.
static inline int
fill(const Columns *columns, PyObject *values, int64_t *words)
{
    PyObject *key, *value;
    Py_ssize_t position = 0, i = 0;
    while (i < columns->count && PyDict_Next(values, &position, &key, &value)) {
        PyObject *expected = PyTuple_GET_ITEM(columns->keys, i);
        // In most calls, the keys are the same objects.
        if (key != expected && (!PyUnicode_CheckExact(key) || PyUnicode_Compare(key, expected) != 0)) {
            return 0;
        }
        if (!as_word(value, (char)(columns->headers[i] & 0xFF), &words[i])) {
            return 0;
        }
        i++;
    }
    return i == columns->count;
}

static inline void
publish(RowWriter *self, int64_t *row, Py_ssize_t words, int64_t layout, int64_t step)
{
    int64_t *cursor = self->cursor.buf;
    const int64_t mark = cursor[2] | layout;
    row[0] = mark;
    row[1] = nanoseconds(CLOCK_REALTIME);
    row[2] = step;
    __atomic_store_n(row + words - 1, mark, __ATOMIC_RELEASE);
    cursor[0] += words * (int64_t)sizeof(int64_t);
    cursor[2] += words * (int64_t)sizeof(int64_t) << POSITION_SHIFT;
    *(int64_t *)self->last_step.buf = step;
}

static inline int64_t *
next_row(const RowWriter *self)
{
    return (int64_t *)((char *)self->ring.buf + *(const int64_t *)self->cursor.buf);
}

static inline int
has_room(const RowWriter *self, Py_ssize_t size)
{
    const int64_t *cursor = self->cursor.buf;
    return cursor[0] + size <= cursor[1];
}

// Make room for a row. Returns 1 on success, 0 if there is no room, or -1 after an error. May run any Python code.
static int
ensure_room(const RowWriter *self, Py_ssize_t size)
{
    PyObject *made = PyObject_CallFunction(self->make_room, "n", size);
    if (made == NULL) {
        return -1;
    }
    const int truth = PyObject_IsTrue(made);
    Py_DECREF(made);
    return truth;
}

// Handle values for which there is no room. Returns UNUSUAL if the lane is closed.
static int
drop(const RowWriter *self, Py_ssize_t values)
{
    if (((const int64_t *)self->cursor.buf)[1] == ABANDONED) {
        return UNUSUAL;
    }
    PyObject *done = PyObject_CallFunction(self->on_full, "n", values);
    Py_XDECREF(done);
    return done == NULL ? FAILED : WRITTEN;
}

static inline Py_ssize_t
items_size(Py_ssize_t columns)
{
    return (ITEMS_HEAD_WORDS + 2 * columns + 1) * (Py_ssize_t)sizeof(int64_t);
}

// Publish a row without a layout, whose columns and values are already in the ring.
static inline void
publish_items(RowWriter *self, int64_t *row, Py_ssize_t columns, int64_t step)
{
    row[ITEMS_HEAD_WORDS - 1] = (int64_t)columns << 32 | (int64_t)columns;
    publish(self, row, items_size(columns) / (Py_ssize_t)sizeof(int64_t), ITEMS, step);
}

// Write a row that is too large for the lane as several rows.
static int
write_parts(RowWriter *self, PyObject *values, Py_ssize_t most, int64_t step)
{
    for (Py_ssize_t start = 0;;) {
        const Py_ssize_t count = PyDict_GET_SIZE(values);
        if (start >= count) {
            return WRITTEN;
        }
        // Callbacks may write other rows, and may change `values`, so collect everything again for each part.
        const Py_ssize_t part = count - start < most ? count - start : most;
        if (!has_room(self, items_size(part))) {
            const int made = ensure_room(self, items_size(part));
            if (made <= 0) {
                return made < 0 ? FAILED : drop(self, count - start);
            }
            continue;
        }
        if (reserve(self, count) < 0) {
            return FAILED;
        }
        const int gathered = gather(self, values, self->headers, self->words);
        if (gathered != WRITTEN) {
            return start ? WRITTEN : gathered;
        }
        int64_t *row = next_row(self);
        memcpy(row + ITEMS_HEAD_WORDS, self->headers + start, (size_t)part * sizeof(int64_t));
        memcpy(row + ITEMS_HEAD_WORDS + part, self->words + start, (size_t)part * sizeof(int64_t));
        publish_items(self, row, part, step);
        start += part;
    }
}

// Write a row that would be too large without a layout.
static int
write_large(RowWriter *self, PyObject *values, Py_ssize_t most, int64_t step)
{
    for (int asked = 0;;) {
        const Py_ssize_t count = PyDict_GET_SIZE(values);
        const Py_ssize_t size = (HEAD_WORDS + count + 1) * (Py_ssize_t)sizeof(int64_t);
        if (size > self->most_bytes) {
            return write_parts(self, values, most, step);
        }
        if (reserve(self, count) < 0) {
            return FAILED;
        }
        const int gathered = gather(self, values, self->headers, self->words);
        if (gathered != WRITTEN) {
            return gathered;
        }
        const uint64_t hash = hash_of(self->headers, count);
        const Columns *columns = find_columns(self->sets, hash, self->headers, count);
        if (columns == NULL) {
            if (asked || !wants_layout(self->sets, hash, count)) {
                return write_parts(self, values, most, step);
            }
            asked = 1;
            if (add_columns(self->sets, values, hash, self->headers, count) < 0) {
                return FAILED;
            }
            continue;
        }
        if (has_room(self, size)) {
            int64_t *row = next_row(self);
            memcpy(row + HEAD_WORDS, self->words, (size_t)count * sizeof(int64_t));
            publish(self, row, HEAD_WORDS + count + 1, columns->layout, step);
            return WRITTEN;
        }
        const int made = ensure_room(self, size);
        if (made <= 0) {
            return made < 0 ? FAILED : drop(self, count);
        }
    }
}

// Write a row whose columns are not those of the last row.
static int
write_any(RowWriter *self, PyObject *values, int64_t step)
{
    const Py_ssize_t most = (self->most_bytes / (Py_ssize_t)sizeof(int64_t) - ITEMS_HEAD_WORDS - 1) / 2;
    for (int asked = 0;;) {
        const Py_ssize_t count = PyDict_GET_SIZE(values);
        if (count == 0) {  // the program has changed `values` during a callback
            return WRITTEN;
        }
        if (count > most) {
            return write_large(self, values, most, step);
        }
        if (!has_room(self, items_size(count))) {  // a row with a layout takes less
            const int made = ensure_room(self, items_size(count));
            if (made <= 0) {
                return made < 0 ? FAILED : drop(self, count);
            }
            continue;
        }
        int64_t *row = next_row(self), *headers = row + ITEMS_HEAD_WORDS, *words = headers + count;
        const int gathered = gather(self, values, headers, words);
        if (gathered != WRITTEN) {
            return gathered;
        }
        const uint64_t hash = hash_of(headers, count);
        Columns *columns = find_columns(self->sets, hash, headers, count);
        if (columns != NULL) {
            memmove(row + HEAD_WORDS, words, (size_t)count * sizeof *words);
            publish(self, row, HEAD_WORDS + count + 1, columns->layout, step);
            self->columns = columns;
            return WRITTEN;
        }
        if (asked || !wants_layout(self->sets, hash, count)) {
            publish_items(self, row, count, step);
            return WRITTEN;
        }
        asked = 1;
        if (add_columns(self->sets, values, hash, headers, count) < 0) {
            return FAILED;
        }
    }
}

// Handle a row for which there is no room, even if its columns have a layout.
static int
drop_row(RowWriter *self, PyObject *values)
{
    const Py_ssize_t count = PyDict_GET_SIZE(values);
    if (reserve(self, count) < 0) {
        return FAILED;
    }
    const int gathered = gather(self, values, self->headers, self->words);
    return gathered == WRITTEN ? drop(self, count) : gathered;
}

// Write a row. `given` is a step, or NULL for the step after the last one. Returns WRITTEN, UNUSUAL or FAILED.
static int
write_row(RowWriter *self, PyObject *values, const int64_t *given)
{
    if (PyDict_GET_SIZE(values) == 0) {
        return UNUSUAL;
    }
    while (self->columns != NULL && self->columns->count == PyDict_GET_SIZE(values)) {
        const Columns *columns = self->columns;
        if (!has_room(self, columns->size)) {
            const int made = ensure_room(self, columns->size);
            if (made <= 0) {
                return made < 0 ? FAILED : drop_row(self, values);
            }
            continue;
        }
        const int64_t last = *(const int64_t *)self->last_step.buf;
        if (given == NULL && last == INT64_MAX) {
            return UNUSUAL;
        }
        int64_t *row = next_row(self);
        if (!fill(columns, values, row + HEAD_WORDS)) {
            break;
        }
        publish(self, row, HEAD_WORDS + columns->count + 1, columns->layout, given == NULL ? last + 1 : *given);
        return WRITTEN;
    }
    const int64_t last = *(const int64_t *)self->last_step.buf;
    if (given == NULL && last == INT64_MAX) {
        return UNUSUAL;
    }
    return write_any(self, values, given == NULL ? last + 1 : *given);
}

static inline int
is_mine(const RowWriter *self)
{
    return self->shared || PyThread_get_thread_ident() == self->owner;
}

static PyObject *
RowWriter_vectorcall(PyObject *object, PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    RowWriter *self = (RowWriter *)object;
    const Py_ssize_t nargs = PyVectorcall_NARGS(nargsf);
    int64_t step = 0;
    PyObject *given = NULL;
    const int timed = ++self->calls % TIMED_CALLS == 0;
    const int64_t start = timed ? nanoseconds(CLOCK_MONOTONIC) : 0;

    // Accept only a plain dict, because looking up str keys in a plain dict runs no Python code.
    if (!parse_call(args, nargs, kwnames, step_name, &given) || !self->direct || !PyDict_CheckExact(args[0])
        || !is_mine(self) || (given != NULL && !as_word(given, 'q', &step))) {
        goto fall_back;
    }
    switch (write_row(self, args[0], given == NULL ? NULL : &step)) {
    case WRITTEN:
        if (timed) {
            count_duration((int64_t *)((char *)self->ring.buf + self->durations), nanoseconds(CLOCK_MONOTONIC) - start);
        }
        Py_RETURN_NONE;
    case FAILED:
        return NULL;
    default:
        break;
    }
fall_back:
    return PyObject_Vectorcall(self->fallback, args, nargs, kwnames);
}

static PyObject *
RowWriter_write(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    RowWriter *self = (RowWriter *)object;
    int64_t step;
    if (nargs != 2 || !PyDict_CheckExact(args[0]) || !as_word(args[1], 'q', &step)) {
        PyErr_SetString(PyExc_TypeError, "write() expects a dict and a 64-bit int");
        return NULL;
    }
    const int done = is_mine(self) ? write_row(self, args[0], &step) : UNUSUAL;
    return done == FAILED ? NULL : PyBool_FromLong(done == WRITTEN);
}

// The types

static PyObject *
KeySets_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *arguments[] = {"names", "numbers", "add_layout", "first", "few", "frequent", NULL};
    PyObject *names, *numbers, *add_layout;
    Py_ssize_t first, few;
    unsigned frequent;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "$O!O!OnnI", arguments, &PyList_Type, &names, &PyDict_Type, &numbers,
                                     &add_layout, &first, &few, &frequent)) {
        return NULL;
    }
    KeySets *self = (KeySets *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->names = Py_NewRef(names);
    self->numbers = Py_NewRef(numbers);
    self->add_layout = Py_NewRef(add_layout);
    self->first = (size_t)first;
    self->few = few;
    self->frequent = frequent;
    return (PyObject *)self;
}

static int
KeySets_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(((KeySets *)object)->add_layout);
    return 0;
}

static void
KeySets_dealloc(PyObject *object)
{
    KeySets *self = (KeySets *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    for (size_t slot = 0; slot < self->slots; slot++) {
        if (self->table[slot] != NULL) {
            free_columns(self->table[slot]);
        }
    }
    PyMem_Free(self->table);
    PyMem_Free(self->next);
    Py_CLEAR(self->names);
    Py_CLEAR(self->numbers);
    Py_CLEAR(self->add_layout);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyType_Slot KeySets_slots[] = {
    {Py_tp_new, KeySets_new},
    {Py_tp_dealloc, KeySets_dealloc},
    {Py_tp_traverse, KeySets_traverse},
    {Py_tp_doc, "The combinations of columns that have layouts. All lanes of a ring share it."},
    {0, NULL},
};

static PyType_Spec KeySets_spec = {
    .name = "tensormeter.record.rows._row_writer.KeySets",
    .basicsize = sizeof(KeySets),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = KeySets_slots,
};

static PyObject *
RowWriter_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"sets", "ring", "cursor", "last_step", "most_bytes", "owner", "make_room", "on_full",
                            "fallback", "durations", NULL};
    PyObject *sets, *ring, *cursor, *last_step, *owner, *make_room, *on_full, *fallback;
    Py_ssize_t durations, most_bytes;
    const State *state = PyType_GetModuleState(type);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "$O!OOOnOOOOn", names, state->sets_type, &sets, &ring, &cursor,
                                     &last_step, &most_bytes, &owner, &make_room, &on_full, &fallback, &durations)) {
        return NULL;
    }
    RowWriter *self = (RowWriter *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->vectorcall = RowWriter_vectorcall;
    if (words_of(ring, &self->ring, 1, "ring") < 0 || words_of(cursor, &self->cursor, 3, "cursor") < 0
        || words_of(last_step, &self->last_step, 1, "last_step") < 0) {
        goto fail;
    }
    if (check_durations(&self->ring, durations) < 0) {
        goto fail;
    }
    if (most_bytes < (ITEMS_HEAD_WORDS + 3) * (Py_ssize_t)sizeof(int64_t)) {
        PyErr_Format(PyExc_ValueError, "most_bytes: %zd is too little for a row", most_bytes);
        goto fail;
    }
    if (owner_of(owner, &self->owner, &self->shared) < 0) {
        goto fail;
    }
    self->durations = durations;
    self->most_bytes = most_bytes;
    self->direct = 1;
    self->sets = (KeySets *)Py_NewRef(sets);
    self->make_room = Py_NewRef(make_room);
    self->on_full = Py_NewRef(on_full);
    self->fallback = Py_NewRef(fallback);
    return (PyObject *)self;
fail:
    Py_DECREF(self);
    return NULL;
}

static int
RowWriter_traverse(PyObject *object, visitproc visit, void *arg)
{
    RowWriter *self = (RowWriter *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->attributes);
    Py_VISIT(self->sets);
    Py_VISIT(self->make_room);
    Py_VISIT(self->on_full);
    Py_VISIT(self->fallback);
    return 0;
}

static int
RowWriter_clear(PyObject *object)
{
    // Clear only members that can be part of a cycle and that no call needs, because the writer may still be called.
    Py_CLEAR(((RowWriter *)object)->attributes);
    return 0;
}

static void
RowWriter_dealloc(PyObject *object)
{
    RowWriter *self = (RowWriter *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    if (self->weak != NULL) {
        PyObject_ClearWeakRefs(object);
    }
    Py_CLEAR(self->attributes);
    Py_CLEAR(self->sets);
    Py_CLEAR(self->make_room);
    Py_CLEAR(self->on_full);
    Py_CLEAR(self->fallback);
    PyMem_Free(self->headers);
    PyMem_Free(self->words);
    PyBuffer_Release(&self->ring);
    PyBuffer_Release(&self->cursor);
    PyBuffer_Release(&self->last_step);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyMethodDef RowWriter_methods[] = {
    {"write", (PyCFunction)(void (*)(void))RowWriter_write, METH_FASTCALL,
     "Write a row with the given step. Return False if the values are not plain numbers with known names, or if the lane is closed."},
    {NULL},
};

static PyMemberDef RowWriter_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(RowWriter, vectorcall), READONLY, NULL},
    {"__dictoffset__", T_PYSSIZET, offsetof(RowWriter, attributes), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(RowWriter, weak), READONLY, NULL},
    {"direct", T_BOOL, offsetof(RowWriter, direct), 0, "Whether calls may write. If not, all calls use `fallback`."},
    {NULL},
};

static PyType_Slot RowWriter_slots[] = {
    {Py_tp_new, RowWriter_new},
    {Py_tp_dealloc, RowWriter_dealloc},
    {Py_tp_traverse, RowWriter_traverse},
    {Py_tp_clear, RowWriter_clear},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_methods, RowWriter_methods},
    {Py_tp_members, RowWriter_members},
    {Py_tp_doc, "A function that writes rows of numbers to one lane."},
    {0, NULL},
};

static PyType_Spec RowWriter_spec = {
    .name = "tensormeter.record.rows._row_writer.RowWriter",
    .basicsize = sizeof(RowWriter),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = RowWriter_slots,
};

static int
add_type(PyObject *object, PyType_Spec *spec, PyTypeObject **kept)
{
    PyObject *type = PyType_FromModuleAndSpec(object, spec, NULL);
    if (type == NULL) {
        return -1;
    }
    const int failed = PyModule_AddType(object, (PyTypeObject *)type);
    if (kept != NULL) {
        *kept = (PyTypeObject *)Py_NewRef(type);
    }
    Py_DECREF(type);
    return failed;
}

static int
module_exec(PyObject *object)
{
    State *state = PyModule_GetState(object);
    step_name = PyUnicode_InternFromString("step");
    if (step_name == NULL || add_type(object, &KeySets_spec, &state->sets_type) < 0) {
        return -1;
    }
    return add_type(object, &RowWriter_spec, NULL);
}

static int
module_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(((State *)PyModule_GetState(object))->sets_type);
    return 0;
}

static int
module_clear(PyObject *object)
{
    Py_CLEAR(((State *)PyModule_GetState(object))->sets_type);
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "tensormeter.record.rows._row_writer",
    .m_doc = "C implementation of a lane's row writer.",
    .m_size = sizeof(State),
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
};

PyMODINIT_FUNC
PyInit__row_writer(void)
{
    return PyModuleDef_Init(&module);
}
