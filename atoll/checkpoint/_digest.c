/* Digests of the elements of a box of a tensor: the law stands in digests.py, this is its fast form.
 *
 * boxed(values, whole, start) -> int: `values` is any buffer of elements of 1, 2, 4 or 8 bytes with one dimension for
 * each of `whole`, strided as it likes; `start` is where its first element lies in a tensor of shape `whole`.
 *
 * Needs the stable ABI of Python 3.11 only (the first with buffers). The interpreter lock is released while it runs.
 * One build carries the loops for each kind of processor and chooses at run time: eight elements at a time in registers
 * of 512 bits, which have a product of 64-bit lanes, else what the compiler makes of a plain loop, with AVX2 or without.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define GAMMA 0x9E3779B97F4A7C15ULL
#define MAX_DIMS 64

/* The output function of SplitMix64 (Steele, Lea, Flood 2014), of one number or of a vector of them. */
#define MIX(z)                                                                                                         \
    do {                                                                                                               \
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;                                                                   \
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;                                                                   \
        z = z ^ (z >> 31);                                                                                             \
    } while (0)

/* A run of `count` elements that lie one after the other, in memory and in the whole; `key` belongs to the first. */
#define RUN(name, type)                                                                                                \
    static uint64_t name(const char *bytes, Py_ssize_t count, uint64_t key)                                            \
    {                                                                                                                  \
        uint64_t sum = 0;                                                                                              \
        for (Py_ssize_t i = 0; i < count; i++, key += GAMMA) {                                                         \
            type value;                                                                                                \
            memcpy(&value, bytes + i * (Py_ssize_t)sizeof(type), sizeof(type));                                        \
            uint64_t z = (uint64_t)value + key;                                                                        \
            MIX(z);                                                                                                    \
            sum += z;                                                                                                  \
        }                                                                                                              \
        return sum;                                                                                                    \
    }

RUN(run8, uint8_t)
RUN(run16, uint16_t)
RUN(run32, uint32_t)
RUN(run64, uint64_t)

typedef uint64_t (*Run)(const char *, Py_ssize_t, uint64_t);
static Run runs[] = {run8, run16, run32, run64};

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

__attribute__((target("avx2"))) RUN(run8_avx2, uint8_t)
__attribute__((target("avx2"))) RUN(run16_avx2, uint16_t)
__attribute__((target("avx2"))) RUN(run32_avx2, uint32_t)
__attribute__((target("avx2"))) RUN(run64_avx2, uint64_t)

/* Narrow elements are read so slowly that the machine itself does not look ahead far enough; beyond the end it is no
 * fault. */
#define AHEAD 2048

typedef uint64_t Lanes __attribute__((vector_size(64)));

/* `load` widens the next eight elements; what is left at the end goes to the plain loop. */
#define RUN_AVX512(name, plain, size, load)                                                                            \
    __attribute__((target("avx512f,avx512dq"))) static uint64_t name(const char *bytes, Py_ssize_t count, uint64_t key) \
    {                                                                                                                  \
        Lanes keys = {key,                                                                                             \
                      key + 1 * GAMMA,                                                                                 \
                      key + 2 * GAMMA,                                                                                 \
                      key + 3 * GAMMA,                                                                                 \
                      key + 4 * GAMMA,                                                                                 \
                      key + 5 * GAMMA,                                                                                 \
                      key + 6 * GAMMA,                                                                                 \
                      key + 7 * GAMMA};                                                                                \
        Lanes sums = {0};                                                                                              \
        Py_ssize_t vectors = count / 8;                                                                                \
        for (Py_ssize_t i = 0; i < vectors; i++, bytes += 8 * size, keys += 8 * GAMMA) {                               \
            __builtin_prefetch(bytes + AHEAD);                                                                         \
            Lanes z = (Lanes)(load) + keys;                                                                            \
            MIX(z);                                                                                                    \
            sums += z;                                                                                                 \
        }                                                                                                              \
        uint64_t sum = plain(bytes, count - vectors * 8, key + (uint64_t)vectors * 8 * GAMMA);                         \
        for (int lane = 0; lane < 8; lane++)                                                                           \
            sum += sums[lane];                                                                                         \
        return sum;                                                                                                    \
    }

RUN_AVX512(run8_avx512, run8, 1, _mm512_cvtepu8_epi64(_mm_loadl_epi64((const void *)bytes)))
RUN_AVX512(run16_avx512, run16, 2, _mm512_cvtepu16_epi64(_mm_loadu_si128((const void *)bytes)))
RUN_AVX512(run32_avx512, run32, 4, _mm512_cvtepu32_epi64(_mm256_loadu_si256((const void *)bytes)))
RUN_AVX512(run64_avx512, run64, 8, _mm512_loadu_si512((const void *)bytes))

static void choose(void)
{
    static const Run avx512[] = {run8_avx512, run16_avx512, run32_avx512, run64_avx512};
    static const Run avx2[] = {run8_avx2, run16_avx2, run32_avx2, run64_avx2};
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"))
        memcpy(runs, avx512, sizeof runs);
    else if (__builtin_cpu_supports("avx2"))
        memcpy(runs, avx2, sizeof runs);
}
#else
static void choose(void) {}
#endif

static uint64_t run(const char *bytes, Py_ssize_t count, uint64_t key, Py_ssize_t size, Py_ssize_t stride)
{
    Run whole = runs[size == 1 ? 0 : size == 2 ? 1 : size == 4 ? 2 : 3];
    uint64_t sum = 0;
    if (stride == size)
        return whole(bytes, count, key);
    for (Py_ssize_t i = 0; i < count; i++)
        sum += whole(bytes + i * stride, 1, key + (uint64_t)i * GAMMA);
    return sum;
}

typedef struct {
    int dims;
    Py_ssize_t shape[MAX_DIMS];  /* of the box */
    Py_ssize_t stride[MAX_DIMS]; /* bytes in memory */
    uint64_t step[MAX_DIMS];     /* elements in the whole */
} Walk;

/* Dimensions that follow each other without a gap, in memory and in the whole, are one. */
static void merge(Walk *walk)
{
    int kept = 0;
    for (int dim = 0; dim < walk->dims; dim++) {
        if (walk->shape[dim] == 1)
            continue;
        if (kept && walk->stride[kept - 1] == walk->stride[dim] * walk->shape[dim] &&
            walk->step[kept - 1] == walk->step[dim] * (uint64_t)walk->shape[dim]) {
            walk->shape[kept - 1] *= walk->shape[dim];
            walk->stride[kept - 1] = walk->stride[dim];
            walk->step[kept - 1] = walk->step[dim];
        } else {
            walk->shape[kept] = walk->shape[dim];
            walk->stride[kept] = walk->stride[dim];
            walk->step[kept++] = walk->step[dim];
        }
    }
    walk->dims = kept;
}

static uint64_t walked(Walk *walk, const char *bytes, uint64_t first, Py_ssize_t size)
{
    Py_ssize_t at[MAX_DIMS] = {0};
    uint64_t sum = 0;
    merge(walk);
    /* Runs go along the last dimension of the whole, whose steps are one; a box of one column has runs of one. */
    int outer = walk->dims;
    Py_ssize_t count = 1, stride = size;
    if (outer && walk->step[outer - 1] == 1) {
        outer--;
        count = walk->shape[outer];
        stride = walk->stride[outer];
    }
    for (;;) {
        sum += run(bytes, count, (first + 1) * GAMMA, size, stride);
        int dim = outer - 1;
        for (; dim >= 0; dim--) {
            bytes += walk->stride[dim];
            first += walk->step[dim];
            if (++at[dim] < walk->shape[dim])
                break;
            bytes -= walk->stride[dim] * walk->shape[dim];
            first -= walk->step[dim] * (uint64_t)walk->shape[dim];
            at[dim] = 0;
        }
        if (dim < 0)
            return sum;
    }
}

/* Fills `walk` and the index of the first element; -1 with an exception where box and whole do not fit each other. */
static int prepared(Walk *walk, uint64_t *first, const Py_buffer *values, PyObject *whole, PyObject *start)
{
    uint64_t step = 1;
    if (values->ndim > MAX_DIMS || PyTuple_Size(whole) != values->ndim || PyTuple_Size(start) != values->ndim) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "values, whole and start need the same number of dimensions, 64 at most");
        return -1;
    }
    walk->dims = values->ndim;
    *first = 0;
    for (int dim = values->ndim - 1; dim >= 0; dim--) {
        Py_ssize_t extent = PyLong_AsSsize_t(PyTuple_GetItem(whole, dim));
        Py_ssize_t from = PyLong_AsSsize_t(PyTuple_GetItem(start, dim));
        if (PyErr_Occurred())
            return -1;
        if (from < 0 || from + values->shape[dim] > extent) {
            PyErr_SetString(PyExc_ValueError, "the box reaches out of the tensor");
            return -1;
        }
        walk->shape[dim] = values->shape[dim];
        walk->stride[dim] = values->strides[dim];
        walk->step[dim] = step;
        *first += (uint64_t)from * step;
        step *= (uint64_t)extent;
    }
    return 0;
}

static PyObject *boxed(PyObject *module, PyObject *args)
{
    PyObject *source, *whole, *start;
    Py_buffer values;
    Walk walk;
    uint64_t first, sum = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "OO!O!", &source, &PyTuple_Type, &whole, &PyTuple_Type, &start))
        return NULL;
    if (PyObject_GetBuffer(source, &values, PyBUF_STRIDES) < 0)
        return NULL;
    if (values.itemsize != 1 && values.itemsize != 2 && values.itemsize != 4 && values.itemsize != 8) {
        PyErr_SetString(PyExc_ValueError, "elements need 1, 2, 4 or 8 bytes");
    } else if (prepared(&walk, &first, &values, whole, start) == 0 && values.len) {
        Py_BEGIN_ALLOW_THREADS
        sum = walked(&walk, values.buf, first, values.itemsize);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&values);
    return PyErr_Occurred() ? NULL : PyLong_FromUnsignedLongLong(sum);
}

static PyMethodDef methods[] = {
    {"boxed", boxed, METH_VARARGS, "boxed(values, whole, start): the digest of a box of a tensor of shape `whole`."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_digest", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__digest(void)
{
    choose();
    return PyModule_Create(&definition);
}
