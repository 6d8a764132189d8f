// Splits the number metrics off an encoded ExportMetricsServiceRequest and returns them as columns.
//
// A metric is split off if it is a gauge or a sum whose points consist of times, a number and attributes, and if its texts and
// attributes are short. Everything else stays in the rest of the request, which protobuf reads. Consecutive points with the same
// attributes form a stretch. Each stretch has a key, a hash of all bytes that identify its series, so that the caller needs no
// strings for a series that it knows. The hash is SipHash-1-3 with 128 bits and a secret key, so senders cannot construct
// collisions.

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define MALFORMED (-1)
#define NO_MEMORY (-2)
#define TOO_LARGE (-3)

#define PLACES 9
#define LARGE (1 << 16) // bytes of a scope from which on other threads may run meanwhile
#define LONGEST 4096    // bytes of a name, unit, description or of a series' attributes; the rest's limits apply to longer ones

typedef struct {
    const uint8_t *at, *end;
} Span;

typedef struct {
    uint32_t number;
    uint32_t wire;
    const uint8_t *begin, *content, *end;
    uint64_t value;
} Field;

typedef struct {
    uint8_t *bytes;
    size_t used, room;
} Buffer;

// ---------------------------------------------------------------------------------------------------------------- buffers

static int reserve(Buffer *buffer, size_t more) {
    if (buffer->used + more <= buffer->room)
        return 0;
    size_t room = buffer->room ? buffer->room : 1024;
    while (room < buffer->used + more)
        room += room / 2;
    uint8_t *bytes = realloc(buffer->bytes, room);
    if (bytes == NULL)
        return NO_MEMORY;
    buffer->bytes = bytes;
    buffer->room = room;
    return 0;
}

static int append(Buffer *buffer, const void *bytes, size_t size) {
    if (reserve(buffer, size) < 0)
        return NO_MEMORY;
    if (size)
        memcpy(buffer->bytes + buffer->used, bytes, size);
    buffer->used += size;
    return 0;
}

static int append_varint(Buffer *buffer, uint64_t value) {
    uint8_t bytes[10];
    size_t size = 0;
    while (value >= 0x80) {
        bytes[size++] = (uint8_t)(value | 0x80);
        value >>= 7;
    }
    bytes[size++] = (uint8_t)value;
    return append(buffer, bytes, size);
}

static PyObject *take(Buffer *buffer) {
    return PyBytes_FromStringAndSize((const char *)buffer->bytes, (Py_ssize_t)buffer->used);
}

// ------------------------------------------------------------------------------------------------------------------- hash

#define ROTATE(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
#define ROUND                                                                                                                  \
    do {                                                                                                                       \
        v0 += v1, v1 = ROTATE(v1, 13), v1 ^= v0, v0 = ROTATE(v0, 32);                                                          \
        v2 += v3, v3 = ROTATE(v3, 16), v3 ^= v2;                                                                               \
        v0 += v3, v3 = ROTATE(v3, 21), v3 ^= v0;                                                                               \
        v2 += v1, v1 = ROTATE(v1, 17), v1 ^= v2, v2 = ROTATE(v2, 32);                                                          \
    } while (0)

static void hash_bytes(const uint64_t secret[2], const uint8_t *bytes, size_t size, uint64_t out[2]) {
    uint64_t v0 = secret[0] ^ 0x736f6d6570736575ULL, v1 = secret[1] ^ 0x646f72616e646f6dULL ^ 0xee;
    uint64_t v2 = secret[0] ^ 0x6c7967656e657261ULL, v3 = secret[1] ^ 0x7465646279746573ULL;
    const uint8_t *end = bytes + (size & ~(size_t)7);
    uint64_t word;
    for (; bytes < end; bytes += 8) {
        memcpy(&word, bytes, 8);
        v3 ^= word;
        ROUND;
        v0 ^= word;
    }
    word = (uint64_t)size << 56;
    for (size_t i = 0; i < (size & 7); i++)
        word |= (uint64_t)bytes[i] << (8 * i);
    v3 ^= word;
    ROUND;
    v0 ^= word;
    v2 ^= 0xee;
    for (int i = 0; i < 3; i++)
        ROUND;
    out[0] = v0 ^ v1 ^ v2 ^ v3;
    v1 ^= 0xdd;
    for (int i = 0; i < 3; i++)
        ROUND;
    out[1] = v0 ^ v1 ^ v2 ^ v3;
}

// ---------------------------------------------------------------------------------------------------------------- protobuf

static int varint(const uint8_t **at, const uint8_t *end, uint64_t *value) {
    uint64_t result = 0;
    for (int shift = 0; shift < 70; shift += 7) {
        if (*at >= end)
            return MALFORMED;
        uint8_t byte = *(*at)++;
        result |= shift < 64 ? (uint64_t)(byte & 0x7f) << shift : 0;
        if (byte < 0x80) {
            *value = result;
            return 0;
        }
    }
    return MALFORMED;
}

// Read the field at `span->at` and move behind it. Returns 0 at the end of the span, 1 for a field.
static int next_field(Span *span, Field *field) {
    if (span->at >= span->end)
        return 0;
    uint64_t tag, size;
    field->begin = span->at;
    if (varint(&span->at, span->end, &tag) < 0 || tag >> 3 == 0 || tag >> 3 > 0x1fffffff)
        return MALFORMED;
    field->number = (uint32_t)(tag >> 3);
    field->wire = (uint32_t)(tag & 7);
    field->content = span->at;
    size_t left = (size_t)(span->end - span->at);
    switch (field->wire) {
    case 0:
        if (varint(&span->at, span->end, &field->value) < 0)
            return MALFORMED;
        break;
    case 1:
        if (left < 8)
            return MALFORMED;
        span->at += 8;
        break;
    case 2:
        if (varint(&span->at, span->end, &size) < 0 || size > (uint64_t)(span->end - span->at))
            return MALFORMED;
        field->content = span->at;
        span->at += size;
        break;
    case 5:
        if (left < 4)
            return MALFORMED;
        span->at += 4;
        break;
    default:
        return MALFORMED;
    }
    field->end = span->at;
    return 1;
}

// ------------------------------------------------------------------------------------------------------------------ blocks

typedef struct {
    Buffer keys, names, counts, places, times, words, integers;
    size_t stretches, points;
} Block;

typedef struct {
    const uint8_t *body;
    uint64_t secret[2];
    size_t most, stretches;
    Buffer scratch;
    Block block;
} Split;

static void clear(Block *block) {
    block->keys.used = block->names.used = block->counts.used = block->places.used = 0;
    block->times.used = block->words.used = block->integers.used = 0;
    block->stretches = block->points = 0;
}

static void release(Split *split) {
    Block *block = &split->block;
    Buffer *buffers[] = {&block->keys,  &block->names,     &block->counts,  &block->places,  &block->times,
                         &block->words, &block->integers, &split->scratch};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        free(buffers[i]->bytes);
}

typedef struct {
    Field name, unit, description, data;
    uint64_t temporality, monotonic;
} Metric;

// Read the fields of a metric. Returns 1 for a gauge or sum with known fields, each at most once; 0 for anything else.
static int read_metric(Span span, Metric *metric) {
    memset(metric, 0, sizeof *metric);
    Field field;
    int status;
    while ((status = next_field(&span, &field)) > 0) {
        Field *into = field.number == 1   ? &metric->name
                      : field.number == 2 ? &metric->description
                      : field.number == 3 ? &metric->unit
                      : field.number == 5 || field.number == 7 ? &metric->data
                                                               : NULL;
        if (into == NULL || into->begin != NULL || field.wire != 2)
            return 0;
        *into = field;
    }
    return status < 0 ? status : metric->data.begin != NULL;
}

typedef struct {
    uint64_t time, word;
    int integer;
    const uint8_t *attributes, *attributes_end;
} Point;

// Read a point whose attributes are consecutive. Returns 0 if the point has anything else.
static int read_point(Span span, Point *point) {
    memset(point, 0, sizeof *point);
    int timed = 0, valued = 0, started = 0, status;
    Field field;
    while ((status = next_field(&span, &field)) > 0) {
        switch (field.number) {
        case 2:
            if (field.wire != 1 || started++)
                return 0;
            break;
        case 3:
            if (field.wire != 1 || timed++)
                return 0;
            memcpy(&point->time, field.content, 8);
            break;
        case 4:
        case 6:
            if (field.wire != 1 || valued++)
                return 0;
            memcpy(&point->word, field.content, 8);
            point->integer = field.number == 6;
            break;
        case 7:
            if (field.wire != 2)
                return 0;
            if (point->attributes == NULL)
                point->attributes = field.begin;
            else if (point->attributes_end != field.begin)
                return 0;
            point->attributes_end = field.end;
            break;
        case 8:
            if (field.wire != 0 || field.value)
                return 0;
            break;
        default:
            return 0;
        }
    }
    return status < 0 ? status : timed && valued;
}

static int same_attributes(const Point *point, const uint8_t *attributes, size_t size) {
    return (size_t)(point->attributes_end - point->attributes) == size &&
           (!size || memcmp(point->attributes, attributes, size) == 0);
}

static int append_stretch(Split *split, const Metric *metric, Span point, const uint64_t key[2], const uint64_t name[2],
                          int has_attributes) {
    Block *block = &split->block;
    split->stretches++;
    int64_t one = 0;
    int32_t places[PLACES];
    const Field *texts[] = {&metric->name, &metric->unit, &metric->description};
    for (int i = 0; i < 3; i++) {
        places[2 * i] = texts[i]->begin ? (int32_t)(texts[i]->content - split->body) : 0;
        places[2 * i + 1] = texts[i]->begin ? (int32_t)(texts[i]->end - split->body) : 0;
    }
    places[6] = metric->data.number == 5 ? -1 : (int32_t)(metric->temporality << 1 | metric->monotonic);
    places[7] = has_attributes ? (int32_t)(point.at - split->body) : 0;
    places[8] = has_attributes ? (int32_t)(point.end - split->body) : 0;
    block->stretches++;
    return append(&block->keys, key, 16) < 0 || append(&block->names, name, 8) < 0 || append(&block->counts, &one, 8) < 0 ||
                   append(&block->places, places, sizeof places) < 0
               ? NO_MEMORY
               : 0;
}

// Write to `into` what identifies a series without attributes.
static int identity_of(Buffer *into, const uint8_t kind[3], const uint8_t *const texts[3], const size_t sizes[3]) {
    into->used = 0;
    if (append(into, kind, 3) < 0)
        return NO_MEMORY;
    for (int i = 0; i < 3; i++)
        if (append_varint(into, sizes[i]) < 0 || append(into, texts[i], sizes[i]) < 0)
            return NO_MEMORY;
    return 0;
}

// Append a metric's points to the block. Returns 1 if that was possible, and 0 if the metric belongs to the rest.
static int split_metric(Split *split, Span content) {
    Metric metric;
    int status = read_metric(content, &metric);
    if (status <= 0)
        return status;
    // The first pass checks the metric, so that the second pass can append.
    Span data = {metric.data.content, metric.data.end};
    Field field;
    Point point;
    size_t points = 0, stretches = 0, size = 0;
    const uint8_t *attributes = NULL;
    while ((status = next_field(&data, &field)) > 0) {
        if (field.number == 1 && field.wire == 2) {
            Span span = {field.content, field.end};
            status = read_point(span, &point);
            if (status <= 0)
                return status;
            stretches += !points++ || !same_attributes(&point, attributes, size);
            attributes = point.attributes, size = (size_t)(point.attributes_end - point.attributes);
            if (size > LONGEST)
                return 0;
        } else if (metric.data.number == 7 && field.wire == 0 && field.number == 2 && field.value <= 2) {
            metric.temporality = field.value;
        } else if (metric.data.number == 7 && field.wire == 0 && field.number == 3 && field.value <= 1) {
            metric.monotonic = field.value;
        } else {
            return 0;
        }
    }
    if (status < 0 || !points)
        return status;
    if (stretches > split->most - split->stretches)
        return 0;

    Buffer *scratch = &split->scratch;
    uint8_t kind[3] = {(uint8_t)metric.data.number, (uint8_t)metric.temporality, (uint8_t)metric.monotonic};
    const uint8_t *texts[] = {metric.name.content, metric.unit.content, metric.description.content};
    size_t sizes[] = {(size_t)(metric.name.end - metric.name.content), (size_t)(metric.unit.end - metric.unit.content),
                      (size_t)(metric.description.end - metric.description.content)};
    if (sizes[0] > LONGEST || sizes[1] > LONGEST || sizes[2] > LONGEST)
        return 0;
    if (identity_of(scratch, kind, texts, sizes) < 0)
        return NO_MEMORY;
    uint64_t header[2], name[2], key[2] = {0, 0};
    hash_bytes(split->secret, scratch->bytes, scratch->used, header);
    hash_bytes(split->secret, metric.name.content, (size_t)(metric.name.end - metric.name.content), name);

    Block *block = &split->block;
    int begun = 0;
    data.at = metric.data.content;
    while ((status = next_field(&data, &field)) > 0) {
        if (field.number != 1)
            continue;
        Span span = {field.content, field.end};
        read_point(span, &point);
        if (!begun || !same_attributes(&point, attributes, size)) {
            begun = 1, attributes = point.attributes, size = (size_t)(point.attributes_end - point.attributes);
            key[0] = header[0], key[1] = header[1];
            if (size) {
                scratch->used = 0;
                if (append(scratch, header, 16) < 0 || append(scratch, attributes, size) < 0)
                    return NO_MEMORY;
                hash_bytes(split->secret, scratch->bytes, scratch->used, key);
            }
            status = append_stretch(split, &metric, span, key, name, size > 0);
            if (status < 0)
                return status;
        }
        uint8_t integer = (uint8_t)point.integer;
        int64_t *count = (int64_t *)(block->counts.bytes + block->counts.used) - 1;
        ++*count;
        block->points++;
        if (append(&block->times, &point.time, 8) < 0 || append(&block->words, &point.word, 8) < 0 ||
            append(&block->integers, &integer, 1) < 0)
            return NO_MEMORY;
    }
    return 1;
}

static PyObject *block_of(const Block *block, Py_ssize_t resource, const Buffer *scope) {
    Buffer columns[] = {block->keys, block->names, block->counts, block->places, block->times, block->words, block->integers};
    PyObject *tuple = PyTuple_New(9);
    if (tuple == NULL)
        return NULL;
    PyTuple_SET_ITEM(tuple, 0, PyLong_FromSsize_t(resource));
    PyTuple_SET_ITEM(tuple, 1, take((Buffer *)scope));
    for (int i = 0; i < 7; i++)
        PyTuple_SET_ITEM(tuple, i + 2, take(&columns[i]));
    for (int i = 0; i < 9; i++)
        if (PyTuple_GET_ITEM(tuple, i) == NULL) {
            Py_DECREF(tuple);
            return NULL;
        }
    return tuple;
}

// Append a message to `outer` as field `number`.
static int nest(Buffer *outer, uint8_t number, const Buffer *message) {
    uint8_t tag = (uint8_t)(number << 3 | 2);
    return append(outer, &tag, 1) < 0 || append_varint(outer, message->used) < 0 ||
                   append(outer, message->bytes, message->used) < 0
               ? NO_MEMORY
               : 0;
}

// Split the metrics of one scope. The caller may have released the GIL.
static int split_metrics(Split *split, Span content, Buffer *shell, Buffer *rest) {
    Field field;
    int status;
    while ((status = next_field(&content, &field)) > 0) {
        if (field.number == 2 && field.wire == 2) {
            Span metric = {field.content, field.end};
            int taken = split_metric(split, metric);
            if (taken < 0)
                return taken;
            if (taken)
                continue;
        } else if (append(shell, field.begin, (size_t)(field.end - field.begin)) < 0) {
            return NO_MEMORY;
        }
        if (append(rest, field.begin, (size_t)(field.end - field.begin)) < 0)
            return NO_MEMORY;
    }
    return status;
}

// Split one scope: append its block to `blocks`, its shell to `shell`, and what protobuf must read to `rest`.
static int split_scope(Split *split, Span content, Py_ssize_t resource, Buffer *shell, Buffer *rest, PyObject *blocks) {
    int status;
    shell->used = rest->used = 0;
    clear(&split->block);
    if (content.end - content.at < LARGE) {
        status = split_metrics(split, content, shell, rest);
    } else {
        Py_BEGIN_ALLOW_THREADS
        status = split_metrics(split, content, shell, rest);
        Py_END_ALLOW_THREADS
    }
    if (status < 0)
        return status;
    if (split->block.stretches) {
        PyObject *block = block_of(&split->block, resource, shell);
        if (block == NULL)
            return NO_MEMORY;
        status = PyList_Append(blocks, block);
        Py_DECREF(block);
        if (status < 0)
            return NO_MEMORY;
    }
    return 0;
}

static int split_request(Split *split, Span body, Buffer *rest, PyObject *blocks) {
    Buffer resource_rest = {0}, scope_rest = {0}, shell = {0};
    Py_ssize_t resource = 0;
    Field field, inner;
    int status, step;
    while ((status = next_field(&body, &field)) > 0) {
        if (field.number != 1 || field.wire != 2) {
            status = append(rest, field.begin, (size_t)(field.end - field.begin));
            if (status < 0)
                break;
            continue;
        }
        resource_rest.used = 0;
        Span content = {field.content, field.end};
        while ((step = next_field(&content, &inner)) > 0) {
            if (inner.number == 2 && inner.wire == 2) {
                Span scope = {inner.content, inner.end};
                step = split_scope(split, scope, resource, &shell, &scope_rest, blocks);
                if (step == 0)
                    step = nest(&resource_rest, 2, &scope_rest);
            } else {
                step = append(&resource_rest, inner.begin, (size_t)(inner.end - inner.begin));
            }
            if (step < 0)
                break;
        }
        if (step == 0)
            step = nest(rest, 1, &resource_rest);
        if (step < 0) {
            status = step;
            break;
        }
        resource++;
    }
    free(resource_rest.bytes), free(scope_rest.bytes), free(shell.bytes);
    return status;
}

static int secret_of(Py_buffer *bytes, uint64_t secret[2]) {
    if (bytes->len != 16) {
        PyErr_SetString(PyExc_ValueError, "the secret must have 16 bytes");
        return -1;
    }
    memcpy(secret, bytes->buf, 16);
    return 0;
}

static PyObject *split_numbers(PyObject *module, PyObject *args) {
    Py_buffer body, secret;
    Py_ssize_t most;
    if (!PyArg_ParseTuple(args, "y*y*n", &body, &secret, &most))
        return NULL;
    Split split = {.body = body.buf, .most = (size_t)most};
    PyObject *blocks = NULL, *result = NULL;
    Buffer rest = {0};
    if (secret_of(&secret, split.secret) < 0 || (blocks = PyList_New(0)) == NULL)
        goto end;
    Span span = {body.buf, (const uint8_t *)body.buf + body.len};
    int status = body.len >= INT32_MAX ? TOO_LARGE : split_request(&split, span, &rest, blocks);
    if (status == NO_MEMORY && !PyErr_Occurred())
        PyErr_NoMemory();
    else if (status == MALFORMED || status == TOO_LARGE)
        result = Py_NewRef(Py_None);
    else if (status >= 0) {
        PyObject *bytes = take(&rest);
        if (bytes != NULL)
            result = Py_BuildValue("(ON)", blocks, bytes);
    }
end:
    Py_XDECREF(blocks);
    free(rest.bytes);
    release(&split);
    PyBuffer_Release(&body);
    PyBuffer_Release(&secret);
    return result;
}

static PyObject *hash_series(PyObject *module, PyObject *args) {
    Py_buffer secret;
    PyObject *rows, *result = NULL;
    uint8_t kind[3];
    if (!PyArg_ParseTuple(args, "O!bbby*", &PyList_Type, &rows, &kind[0], &kind[1], &kind[2], &secret))
        return NULL;
    uint64_t key[2], out[2];
    Buffer scratch = {0}, keys = {0};
    if (secret_of(&secret, key) < 0)
        goto end;
    for (Py_ssize_t row = 0; row < PyList_GET_SIZE(rows); row++) {
        const uint8_t *texts[3];
        size_t sizes[3];
        PyObject *tuple = PyList_GET_ITEM(rows, row);
        for (int i = 0; i < 3; i++) {
            PyObject *text = PyTuple_Check(tuple) && PyTuple_GET_SIZE(tuple) >= 3 ? PyTuple_GET_ITEM(tuple, i) : Py_None;
            Py_ssize_t size;
            texts[i] = (const uint8_t *)PyUnicode_AsUTF8AndSize(text, &size);
            if (texts[i] == NULL)
                goto end;
            sizes[i] = (size_t)size;
        }
        if (identity_of(&scratch, kind, texts, sizes) < 0) {
            PyErr_NoMemory();
            goto end;
        }
        hash_bytes(key, scratch.bytes, scratch.used, out);
        if (append(&keys, out, 16) < 0) {
            PyErr_NoMemory();
            goto end;
        }
    }
    result = take(&keys);
end:
    free(scratch.bytes);
    free(keys.bytes);
    PyBuffer_Release(&secret);
    return result;
}

static PyObject *hash_name(PyObject *module, PyObject *args) {
    Py_buffer name, secret;
    if (!PyArg_ParseTuple(args, "y*y*", &name, &secret))
        return NULL;
    uint64_t key[2], out[2];
    PyObject *result = NULL;
    if (secret_of(&secret, key) == 0) {
        hash_bytes(key, name.buf, (size_t)name.len, out);
        result = PyLong_FromUnsignedLongLong(out[0]);
    }
    PyBuffer_Release(&name);
    PyBuffer_Release(&secret);
    return result;
}

static PyMethodDef methods[] = {
    {"split_numbers", split_numbers, METH_VARARGS, NULL},
    {"hash_series", hash_series, METH_VARARGS, NULL},
    {"hash_name", hash_name, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_number_blocks", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__number_blocks(void) { return PyModule_Create(&module); }
