/* exp, sigmoid and tanh of a vector; sigmoid and tanh within 2 ulp over all finite inputs in float32, of which
 * tests/test_activations.py tries all 2^32, and within 3 in float64. They run under flush-to-zero: a result below the
 * smallest normal number is zero. NaN in, NaN out.
 *
 * e^t = 2^n e^r, n = round(t / ln 2), |r| <= ln(2)/2 (Cody and Waite 1980, ch. 6), and expm1(r) = r + r^2 q(r) with q a
 * Chebyshev fit of degree 5 (float32) or 10 (float64) whose error is below 2^-29 and 2^-59: no rounding comes from it.
 */
#if BITS == 32
#define LOG2E 0x1.715476p+0f
#define LN2_HI 0x1.62e4p-1f /* few bits, so that n * LN2_HI is exact without fused arithmetic too */
#define LN2_LO 0x1.7f7d1cp-20f
#define ROUNDER 0x1.8p+23f /* adding it leaves round(t) in the low bits of the significand */
#define EXPONENT 23
#define BIAS 127
#define FAR 88.f /* n = -127, whose 2^n has the bits of 0: e^-88 is below the smallest normal number */
#else
#define LOG2E 0x1.71547652b82fep+0
#define LN2_HI 0x1.62e42feep-1
#define LN2_LO 0x1.a39ef35793c76p-33
#define ROUNDER 0x1.8p+52
#define EXPONENT 52
#define BIAS 1023
#define FAR 709. /* n = -1023, likewise */
#endif
#define TANH_FAR 40 /* e^-40 is below half an ulp of 1 in both dtypes */

/* q's coefficients, highest power first. */
static const REAL N(expm1_q)[] = {
#if BITS == 32
    1.9891031e-04f, 1.3933686e-03f, 8.3333109e-03f, 4.1666465e-02f, 1.6666667e-01f, .5f,
#else
    2.0914717341716375952e-9,
    2.5105259538448493419e-8,
    2.7557273570102139673e-7,
    2.7557255297969644392e-6,
    2.4801587325605322782e-5,
    1.9841269874901259234e-4,
    1.3888888888883731828e-3,
    8.3333333333261120526e-3,
    4.1666666666666669767e-2,
    1.6666666666666671008e-1,
    .5,
#endif
};

#define MOST_TOGETHER 5

/* expm1(r) and 2^n of each t; t within [-FAR, 0] or NaN. */
INLINE void N(reduced_expm1)(const int count, const N(vec) *t, N(vec) *p, N(vec) *power) {
    N(vec) shifted[MOST_TOGETHER], n[MOST_TOGETHER], r[MOST_TOGETHER], q[MOST_TOGETHER];
    EACH(0, count) shifted[i] = N(fma)(t[i], N(all)(LOG2E), N(all)(ROUNDER));
    EACH(0, count) n[i] = shifted[i] - ROUNDER;
    EACH(0, count) r[i] = N(fma)(n[i], N(all)(-LN2_HI), t[i]);
    EACH(0, count) r[i] = N(fma)(n[i], N(all)(-LN2_LO), r[i]);
    EACH(0, count) power[i] = (N(vec))(((N(bits))shifted[i] << EXPONENT) + ((UINT)BIAS << EXPONENT));
    EACH(0, count) q[i] = N(all)(N(expm1_q)[0]);
    EACH_OF(k, 1, (int)(sizeof N(expm1_q) / sizeof(REAL)))
        EACH(0, count) q[i] = N(fma)(q[i], r[i], N(all)(N(expm1_q)[k]));
    EACH(0, count) p[i] = N(fma)(r[i] * r[i], q[i], r[i]);
}

/* The first `sigmoids` of x become their sigmoid, the others of `count` their tanh, all step by step beside one another:
 * one alone is a chain of twenty operations that wait for each other.
 *
 * sigmoid(x), with e = e^-|x|: 1 / (1 + e) for x >= 0, s = e / (1 + e) for x < 0, and e - e*s far left, where e is
 * known better than 1 + e is (2.1 ulp without).
 *
 * tanh(x) = sign(x) * m / (1 + e), e = e^(-2|x|), m = 1 - e = -expm1(-2|x|): no cancellation near zero, exactly 1 far
 * out, odd bit for bit. m and 1 + e are each rounded once: as 2 - m the denominator would cost 0.5 ulp more. */
INLINE void N(activate)(const int sigmoids, const int count, N(vec) *x) {
    const N(bits) sign_bit = (N(bits))N(all)(-(REAL)0);
    N(vec) t[MOST_TOGETHER], p[MOST_TOGETHER], power[MOST_TOGETHER];
    N(vec) e[MOST_TOGETHER], over[MOST_TOGETHER], under[MOST_TOGETHER];
    EACH(0, sigmoids) t[i] = N(max)(N(all)(-FAR), (N(vec))((N(bits))x[i] | sign_bit));
    EACH(sigmoids, count) t[i] = N(max)(N(all)(-TANH_FAR), 2 * (N(vec))((N(bits))x[i] | sign_bit));
    N(reduced_expm1)(count, t, p, power);
    EACH(0, count) under[i] = N(fma)(power[i], p[i], 1 + power[i]);
    EACH(0, sigmoids) e[i] = power[i] * (1 + p[i]);
    EACH(0, sigmoids) over[i] = N(where_negative)(x[i], e[i], N(all)(1));
    EACH(sigmoids, count) over[i] = N(fma)(-power[i], p[i], 1 - power[i]);
    EACH(0, count) over[i] /= under[i];
    EACH(0, sigmoids) x[i] = N(where)((N(bits))(x[i] < (REAL)-1), N(fma)(-e[i], over[i], e[i]), over[i]);
    EACH(sigmoids, count) x[i] = (N(vec))((N(bits))over[i] ^ ((N(bits))x[i] & sign_bit));
}

INLINE N(vec) N(sigmoid)(N(vec) x) {
    N(activate)(1, 1, &x);
    return x;
}

INLINE N(vec) N(tanh)(N(vec) x) {
    N(activate)(0, 1, &x);
    return x;
}

static void N(sigmoid_array)(const void *x, void *y, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i += LANES)
        N(store_upto)((REAL *)y + i, N(sigmoid)(N(load_upto)((const REAL *)x + i, n - i)), n - i);
}

static void N(tanh_array)(const void *x, void *y, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i += LANES)
        N(store_upto)((REAL *)y + i, N(tanh)(N(load_upto)((const REAL *)x + i, n - i)), n - i);
}

#undef LOG2E
#undef LN2_HI
#undef LN2_LO
#undef ROUNDER
#undef EXPONENT
#undef BIAS
#undef FAR
#undef TANH_FAR
#undef MOST_TOGETHER
