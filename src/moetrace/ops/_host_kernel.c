/* What one forward of one router adds to its accumulator, in one pass over its scores.
 *
 * The numbers are those of moetrace.ops.reference, which says what every form must equal; the order
 * of the sums is that of moetrace.layout. Scores, ids and sums come as addresses: host_form.py has
 * made sure of what lies there. Letters: T tokens, E experts, K chosen, N lanes.
 */
#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdlib.h>

#include "_host_lanes.h"

#define FLOOR -200.0f
#define LIMIT 1024.0f
#define TOKENS_IN_FLOAT 256 /* so many add up in float32 without losing a digit */
#define LARGE (1 << 20)     /* scores, about a millisecond, for which the interpreter is let go */

enum {
  TOKENS, CALLS, MASKED, DROPPED, NONFINITE,
  ENTROPY, CONFIDENCE, MARGIN, LSE, LSE_SQ, SCALARS
};
enum { FLOAT32, BFLOAT16 };
enum { SOFTMAX, SIGMOID, SQRTSOFTPLUS, PROBABILITIES };

#ifndef FOR_EACH_CPU
#if defined(__x86_64__) && defined(__GLIBC__)
#define FOR_EACH_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_CPU
#endif
#endif

/* The logarithm of a score before those of a token are normalised: log_scores of reference.py. */
INLINE lanes log_score(lanes x, int64_t scoring) {
  if (scoring == PROBABILITIES) return logarithm(x);
  const lanes positive = PICK(lanes, x > 0.0f, (whole)x, (whole)ALL(0.0f));
  if (scoring == SIGMOID) return (x - positive) - log_of_one_and(x);
  /* Far below 0 softplus is its own exponential, which may be too small for a float. */
  const lanes log = logarithm(positive + log_of_one_and(x));
  return 0.5f * PICK(lanes, x < -16.0f, (whole)x, (whole)log);
}

struct forward {
  const int64_t *ids;     /* (T, K) */
  const char *logits;     /* (T, E), a row every row_bytes, or NULL */
  const float *weights;   /* (T, K), or NULL */
  const uint8_t *real;    /* (T,), or NULL */
  int64_t T, E, K, row_bytes, scoring;
};

struct sums {
  double *probs;          /* (E,) */
  double *gates;          /* (E + 1,), the overflow bin last */
  int64_t *counts;        /* (E + 1,) */
  double reals[SCALARS];
  int64_t tokens, nonfinite;
  lanes *scores, *exps, *some_probs; /* a row each, padded to whole lanes */
};

INLINE lanes load(const char *row, int64_t place, int kind) {
  if (kind == FLOAT32) return *(const lanes_anywhere *)(row + 4 * place);
  uint16_t halves __attribute__((vector_size(2 * N)));
  memcpy(&halves, row + 2 * place, sizeof halves);
  return (lanes)(__builtin_convertvector(halves, whole) << 16);
}

INLINE float load_one(const char *row, int64_t place, int kind) {
  float value = 0;
  if (kind == FLOAT32) {
    memcpy(&value, row + 4 * place, 4);
  } else {
    memcpy((char *)&value + 2 * (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__), row + 2 * place, 2);
  }
  return value;
}

INLINE int64_t expert_of(int64_t id, int64_t E) { return (uint64_t)id < (uint64_t)E ? id : 0; }

INLINE void flush_probs(struct sums *sums, int64_t E) {
  float *some = (float *)sums->some_probs;
  for (int64_t i = 0; i < E; i++) {
    sums->probs[i] += some[i];
    some[i] = 0;
  }
}

INLINE void score(const struct forward *f, struct sums *sums, int kind, int64_t scoring) {
  const int64_t E = f->E, K = f->K, rows = (E + N - 1) / N, inside = E / N;
  lanes *scores = sums->scores, *exps = sums->exps;
  float *flat = (float *)scores;
  double entropy = 0, confidence = 0, margin = 0, lse_sum = 0, lse_sq = 0;
  int64_t since = 0;
  const whole lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const int64_t bytes = kind == FLOAT32 ? 4 : 2;
  const char *end = f->logits + (f->T - 1) * f->row_bytes + E * bytes;
  for (int64_t t = 0; t < f->T; t++) {
    if (f->real && !f->real[t]) continue;
    const char *row = f->logits + t * f->row_bytes;
    lanes tops = ALL(-INFINITY);
    for (int64_t i = 0; i < inside; i++) {
      scores[i] = load(row, i * N, kind);
      tops = HIGHER(lanes, whole, tops, scores[i]);
    }
    if (inside < rows) {
      if (row + rows * N * bytes <= end) {
        const lanes over = load(row, inside * N, kind);
        scores[inside] = PICK(lanes, lane < (int32_t)(E % N), (whole)over, (whole)ALL(-INFINITY));
      } else {
        scores[inside] = ALL(-INFINITY);
        for (int64_t i = inside * N; i < E; i++) flat[i] = load_one(row, i, kind);
      }
      tops = HIGHER(lanes, whole, tops, scores[inside]);
    }
    float top = highest_of(tops), lse = 0;
    if (scoring != SOFTMAX) {
      lanes totals = ALL(0.0f);
      tops = ALL(-INFINITY);
      for (int64_t i = 0; i < rows; i++) {
        totals += exponential(scores[i] - top);
        scores[i] = log_score(scores[i], scoring);
        if (i == inside) {
          scores[i] = PICK(lanes, lane < (int32_t)(E % N), (whole)scores[i], (whole)ALL(-INFINITY));
        }
        tops = HIGHER(lanes, whole, tops, scores[i]);
      }
      lse = top + logf(sum_of(totals));
      top = highest_of(tops);
    }
    lanes totals = ALL(0.0f), dots = ALL(0.0f);
    for (int64_t i = 0; i < rows; i++) {
      const lanes shifted = scores[i] - top;
      scores[i] = PICK(lanes, (whole)(shifted < FLOOR), (whole)ALL(FLOOR), (whole)shifted);
      exps[i] = exponential(scores[i]);
      totals += exps[i];
      dots += exps[i] * scores[i];
    }
    float total = sum_of(totals), dot = sum_of(dots);
    /* What is not finite shows in the top or, a NaN, which no comparison lets through, in the
     * total. Where the logits are finite all the same the experts count as equals. */
    const int whole_row = isfinite(top) && isfinite(total);
    if (scoring == SOFTMAX ? !whole_row : !isfinite(lse)) {
      sums->nonfinite++;
      continue;
    }
    if (!whole_row) {
      for (int64_t i = 0; i < rows; i++) {
        scores[i] = ALL(0.0f);
        exps[i] = ALL(1.0f);
      }
      total = (float)E;
      dot = 0;
    }
    const float share = 1 / total, log_total = logf(total);
    for (int64_t i = 0; i < rows; i++) sums->some_probs[i] += exps[i] * share;
    if (++since == TOKENS_IN_FLOAT) {
      flush_probs(sums, E);
      since = 0;
    }
    if (K < E) {
      const int64_t *ids = f->ids + t * K;
      const float floor = log_total + FLOOR;
      float lowest = 0;
      for (int64_t k = 0; k < K; k++) {
        const float chosen = flat[expert_of(ids[k], E)];
        lowest = chosen < lowest ? chosen : lowest;
      }
      for (int64_t k = 0; k < K; k++) flat[expert_of(ids[k], E)] = -INFINITY;
      /* The lanes beyond the last expert hold FLOOR, which is below the floor of any token. */
      lanes rest = ALL(-INFINITY);
      for (int64_t i = 0; i < rows; i++) rest = HIGHER(lanes, whole, rest, scores[i]);
      const float left = highest_of(rest);
      margin += (lowest > floor ? lowest : floor) - (left > floor ? left : floor);
    }
    if (scoring == SOFTMAX) lse = top + log_total;
    lse = lse > LIMIT ? LIMIT : lse < -LIMIT ? -LIMIT : lse;
    const float nats = log_total - dot * share;
    entropy += nats > 0 ? nats : 0;
    confidence += share;
    lse_sum += lse;
    lse_sq += (double)lse * lse;
  }
  flush_probs(sums, E);
  sums->reals[ENTROPY] = entropy;
  sums->reals[CONFIDENCE] = confidence;
  sums->reals[MARGIN] = margin;
  sums->reals[LSE] = lse_sum;
  sums->reals[LSE_SQ] = lse_sq;
}

FOR_EACH_CPU static void softmax_float32(const struct forward *f, struct sums *sums) {
  score(f, sums, FLOAT32, SOFTMAX);
}

FOR_EACH_CPU static void softmax_bfloat16(const struct forward *f, struct sums *sums) {
  score(f, sums, BFLOAT16, SOFTMAX);
}

FOR_EACH_CPU static void others_float32(const struct forward *f, struct sums *sums) {
  score(f, sums, FLOAT32, f->scoring);
}

FOR_EACH_CPU static void others_bfloat16(const struct forward *f, struct sums *sums) {
  score(f, sums, BFLOAT16, f->scoring);
}

static void choose(const struct forward *f, struct sums *sums) {
  const int64_t E = f->E, K = f->K;
  for (int64_t t = 0; t < f->T; t++) {
    if (f->real && !f->real[t]) continue;
    sums->tokens++;
    for (int64_t i = t * K; i < (t + 1) * K; i++) {
      const int64_t id = f->ids[i], expert = (uint64_t)id < (uint64_t)E ? id : E;
      sums->counts[expert]++;
      if (f->weights) {
        const float w = f->weights[i];
        sums->gates[expert] += w > LIMIT ? LIMIT : w < -LIMIT ? -LIMIT : w == w ? w : 0;
      }
    }
  }
}

static int64_t fixed(double sum, int bits) {
  const double scaled = rint(ldexp(sum, bits)), most = 0x1p62;
  return (int64_t)(scaled > most ? most : scaled < -most ? -most : scaled);
}

/* Where a sum stands in a row, and its binary digits after the point, moetrace.layout says. */
static void commit(const struct forward *f, const struct sums *sums, int64_t *row) {
  static const int bits[SCALARS] = {
      [ENTROPY] = 26, [CONFIDENCE] = 30, [MARGIN] = 20, [LSE] = 20, [LSE_SQ] = 16};
  const int64_t E = f->E;
  int64_t *scalars = row + 3 * E + 1;
  for (int64_t i = 0; i <= E; i++) row[i] += sums->counts[i];
  for (int64_t i = 0; i < E; i++) {
    row[E + 1 + i] += fixed(sums->probs[i], 30);
    row[2 * E + 1 + i] += fixed(sums->gates[i], 30);
  }
  scalars[TOKENS] += sums->tokens;
  scalars[CALLS] += 1;
  scalars[MASKED] += f->T - sums->tokens;
  scalars[NONFINITE] += sums->nonfinite;
  for (int i = ENTROPY; i < SCALARS; i++) scalars[i] += fixed(sums->reals[i], bits[i]);
}

static int add_forward(const struct forward *f, int kind, int64_t *row) {
  const int64_t E = f->E, padded = (E + N - 1) / N * N;
  const size_t floats = 3 * padded * sizeof(float), eights = (3 * E + 2) * sizeof(double);
  char *memory = malloc(floats + eights + sizeof(lanes));
  if (!memory) return 0;
  char *aligned = memory + (-(uintptr_t)memory & (sizeof(lanes) - 1));
  memset(aligned, 0, floats + eights);
  struct sums sums = {0};
  sums.scores = (lanes *)aligned;
  sums.exps = sums.scores + padded / N;
  sums.some_probs = sums.exps + padded / N;
  sums.probs = (double *)(aligned + floats);
  sums.gates = sums.probs + E;
  sums.counts = (int64_t *)(sums.gates + E + 1);
  choose(f, &sums);
  if (f->logits && f->scoring == SOFTMAX) {
    (kind == BFLOAT16 ? softmax_bfloat16 : softmax_float32)(f, &sums);
  } else if (f->logits) {
    (kind == BFLOAT16 ? others_bfloat16 : others_float32)(f, &sums);
  }
  commit(f, &sums, row);
  free(memory);
  return 1;
}

enum {
  ROW, EXPERTS, COUNT, CHOSEN, IDS, LOGITS, KIND, ROW_BYTES, SCORING, WEIGHTS, REAL, ARGUMENTS
};

static PyObject *add(PyObject *self, PyObject *const *args, Py_ssize_t given) {
  int64_t a[ARGUMENTS];
  if (given != ARGUMENTS) {
    return PyErr_Format(PyExc_TypeError, "add takes %d whole numbers, found %zd", ARGUMENTS, given);
  }
  for (int i = 0; i < ARGUMENTS; i++) a[i] = PyLong_AsLongLong(args[i]);
  if (PyErr_Occurred()) return NULL;
#define AT(type, i) ((type)(intptr_t)a[i])
  const struct forward f = {
      AT(const int64_t *, IDS), AT(const char *, LOGITS),
      AT(const float *, WEIGHTS), AT(const uint8_t *, REAL),
      a[COUNT], a[EXPERTS], a[CHOSEN], a[ROW_BYTES], a[SCORING],
  };
  int done;
  if (f.T < LARGE / f.E) {
    done = add_forward(&f, (int)a[KIND], AT(int64_t *, ROW));
  } else {
    Py_BEGIN_ALLOW_THREADS
    done = add_forward(&f, (int)a[KIND], AT(int64_t *, ROW));
    Py_END_ALLOW_THREADS
  }
  if (!done) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"add", (PyCFunction)(void (*)(void))add, METH_FASTCALL, "See _host_kernel.pyi."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "moetrace.ops._host_kernel",
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__host_kernel(void) { return PyModuleDef_Init(&module); }
