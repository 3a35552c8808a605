/* exp, sigmoid and tanh of a vector; sigmoid and tanh within 2 ulp over all finite inputs (tests/test_activations.py
 * tries all 2^32). They run under flush-to-zero: a result below the smallest normal number is zero. NaN in, NaN out.
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

/* expm1(r) and 2^n of t; t within [-FAR, 0] or NaN. */
INLINE N(vec) N(reduced_expm1)(N(vec) t, N(vec) *power) {
    N(vec) shifted = N(fma)(t, N(all)(LOG2E), N(all)(ROUNDER));
    N(vec) n = shifted - ROUNDER;
    N(vec) r = N(fma)(n, N(all)(-LN2_LO), N(fma)(n, N(all)(-LN2_HI), t));
    *power = (N(vec))(((N(bits))shifted << EXPONENT) + ((UINT)BIAS << EXPONENT));
#if BITS == 32
    N(vec) q = N(all)(1.9891031e-04f);
    q = N(fma)(q, r, N(all)(1.3933686e-03f));
    q = N(fma)(q, r, N(all)(8.3333109e-03f));
    q = N(fma)(q, r, N(all)(4.1666465e-02f));
    q = N(fma)(q, r, N(all)(1.6666667e-01f));
    q = N(fma)(q, r, N(all)(.5f));
#else
    N(vec) q = N(all)(2.0914717341716375952e-9);
    q = N(fma)(q, r, N(all)(2.5105259538448493419e-8));
    q = N(fma)(q, r, N(all)(2.7557273570102139673e-7));
    q = N(fma)(q, r, N(all)(2.7557255297969644392e-6));
    q = N(fma)(q, r, N(all)(2.4801587325605322782e-5));
    q = N(fma)(q, r, N(all)(1.9841269874901259234e-4));
    q = N(fma)(q, r, N(all)(1.3888888888883731828e-3));
    q = N(fma)(q, r, N(all)(8.3333333333261120526e-3));
    q = N(fma)(q, r, N(all)(4.1666666666666669767e-2));
    q = N(fma)(q, r, N(all)(1.6666666666666671008e-1));
    q = N(fma)(q, r, N(all)(.5));
#endif
    return N(fma)(r * r, q, r);
}

/* sigmoid(x), with e = e^-|x|: 1 / (1 + e) for x >= 0, s = e / (1 + e) for x < 0, and e - e*s far left, where e is
 * known better than 1 + e is (2.1 ulp without). */
INLINE N(vec) N(sigmoid)(N(vec) x) {
    const N(bits) sign_bit = (N(bits))N(all)(-(REAL)0), negative = (N(bits))((N(signed))x >> (BITS - 1));
    N(vec) power, p = N(reduced_expm1)(N(max)(N(all)(-FAR), (N(vec))((N(bits))x | sign_bit)), &power);
    const N(vec) e = power * (1 + p);
    const N(vec) s = (N(vec))((negative & (N(bits))e) | (~negative & (N(bits))N(all)(1))) / N(fma)(power, p, 1 + power);
    const N(bits) left = (N(bits))(x < (REAL)-1);
    return (N(vec))((left & (N(bits))N(fma)(-e, s, e)) | (~left & (N(bits))s));
}

/* tanh(x) = sign(x) * m / (1 + e), e = e^(-2|x|), m = 1 - e = -expm1(-2|x|): no cancellation near zero, exactly 1 far
 * out, odd bit for bit. m and 1 + e are each rounded once: as 2 - m the denominator would cost 0.5 ulp more. */
INLINE N(vec) N(tanh)(N(vec) x) {
    const N(bits) sign_bit = (N(bits))N(all)(-(REAL)0), sign = (N(bits))x & sign_bit;
    N(vec) power, p = N(reduced_expm1)(N(max)(N(all)(-TANH_FAR), 2 * (N(vec))((N(bits))x | sign_bit)), &power);
    return (N(vec))((N(bits))(N(fma)(-power, p, 1 - power) / N(fma)(power, p, 1 + power)) ^ sign);
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
