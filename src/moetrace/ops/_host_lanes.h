/* Sixteen float32 at once, and the functions of them that the kernel for a CPU needs.
 *
 * Lanes are GCC's vector extension and no loop left to the optimiser: that would take -ffast-math,
 * which at link time switches off denormal numbers for the whole process. Sums run over the lanes
 * in one fixed order, whatever the machine.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define N 16

typedef float lanes __attribute__((vector_size(4 * N)));
typedef float lanes_anywhere __attribute__((vector_size(4 * N), aligned(4)));
typedef int32_t whole __attribute__((vector_size(4 * N)));
typedef float eight __attribute__((vector_size(32)));
typedef int32_t whole_eight __attribute__((vector_size(32)));
typedef float four __attribute__((vector_size(16)));
typedef int32_t whole_four __attribute__((vector_size(16)));

#define INLINE static inline __attribute__((always_inline))
#define PICK(type, which, a, b) ((type)(((which) & (a)) | (~(which) & (b))))
#define HIGHER(type, integers, a, b) PICK(type, (integers)((a) > (b)), (integers)(a), (integers)(b))
#define ALL(x) ((lanes){0} + (x))

INLINE float sum_of(lanes v) {
  eight a, b;
  memcpy(&a, &v, 32);
  memcpy(&b, (const char *)&v + 32, 32);
  a += b;
  four c, d;
  memcpy(&c, &a, 16);
  memcpy(&d, (const char *)&a + 16, 16);
  c += d;
  return (c[0] + c[1]) + (c[2] + c[3]);
}

INLINE float highest_of(lanes v) {
  eight a, b;
  memcpy(&a, &v, 32);
  memcpy(&b, (const char *)&v + 32, 32);
  a = HIGHER(eight, whole_eight, a, b);
  four c, d;
  memcpy(&c, &a, 16);
  memcpy(&d, (const char *)&a + 16, 16);
  c = HIGHER(four, whole_four, c, d);
  const float e = c[0] > c[1] ? c[0] : c[1], f = c[2] > c[3] ? c[2] : c[3];
  return e > f ? e : f;
}

/* e**x for x <= 0, to 2 units in the last place; 0 below e**-87, NaN of NaN. Adding 1.5 * 2**23
 * rounds to a whole number. Source of both polynomials: Cephes, expf and logf, S. Moshier, 1989. */
INLINE lanes exponential(lanes x) {
  const lanes shifted = x * 1.44269504088896341f + 12582912.0f;
  const lanes n = shifted - 12582912.0f;
  lanes r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const whole power = ((whole)shifted - (0x4B400000 - 127)) << 23;
  const whole tiny = x < -87.0f;
  return (lanes)((whole)(p * (lanes)power) & ~tiny);
}

/* The natural logarithm, to 2 units in the last place; of denormal numbers and infinity too. */
INLINE lanes logarithm(lanes x) {
  const whole denormal = x < 0x1p-126f;
  const lanes scaled = PICK(lanes, denormal, (whole)(x * 0x1p23f), (whole)x);
  const whole shift = ((whole)scaled - 0x3F3504F3) >> 23; /* the mantissa is then about 1 */
  const lanes f = (lanes)((whole)scaled - (shift << 23)) - 1.0f;
  const lanes n = __builtin_convertvector(shift - (denormal & 23), lanes);
  lanes p = f * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const lanes square = f * f;
  lanes log = f + (n * -2.12194440e-4f - 0.5f * square + f * square * p) + n * 0.693359375f;
  log = PICK(lanes, x == 0.0f, (whole)ALL(-INFINITY), (whole)log);
  log = PICK(lanes, x == INFINITY, (whole)x, (whole)log);
  return PICK(lanes, x >= 0.0f, (whole)log, (whole)ALL(NAN));
}

/* log(1 + e**-|x|), which sigmoid and softplus have in common, with what the sum rounds away. */
INLINE lanes log_of_one_and(lanes x) {
  const lanes small = exponential(PICK(lanes, x < 0.0f, (whole)x, (whole)-x));
  const lanes sum = 1.0f + small;
  return logarithm(sum) + (small - (sum - 1.0f));
}
