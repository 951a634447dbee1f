// Products of bytes: rows of floats quantised right before them, and integer sums turned into floats after them. A row
// x becomes q = round(x / scale), scale = max |x| / 127, and (q . w) * scale * (scale of w) stands for x . W. Included
// inside the namespace of a target, after gates.h.
#pragma once

// Writes bytes up to a whole vector, and returns the scale: NaN where a value is not finite, so that it spreads as it
// does in floats, and zero for a row so close to zero that its scale might be subnormal.
inline float quantize_row(const float* row, int64_t size, float* out) {
  using V = Vec<float>;
  constexpr float kLargest = 127, kZeroBelow = 0x1p-100f;
  V bits = V::set(0);
  int64_t i = 0;
  for (; i + V::width <= size; i += V::width) bits = larger_magnitude(V::load(row + i), bits);
  if (i < size) bits = larger_magnitude(V::load(row + i, static_cast<int>(size - i)), bits);
  int32_t lanes[V::width], largest_bits = 0;
  std::memcpy(lanes, &bits, sizeof lanes);
  for (const int32_t lane : lanes) largest_bits = std::max(largest_bits, lane);
  const float largest = float_from_bits(static_cast<uint32_t>(largest_bits));
  const bool finite = largest_bits < 0x7f800000,
             zero = largest_bits < static_cast<int32_t>(bits_from_float(kZeroBelow));
  const V inverse = V::set(finite && !zero ? kLargest / largest : 0);
  int8_t* const bytes = reinterpret_cast<int8_t*>(out);
  for (i = 0; i + V::width <= size; i += V::width) store_bytes(bytes + i, V::load(row + i) * inverse);
  if (i < size) store_bytes(bytes + i, V::load(row + i, static_cast<int>(size - i)) * inverse);
  return !finite ? float_from_bits(0x7fc00000) : zero ? 0 : largest / kLargest;
}

// Sums [rows][groups][3 vectors], `stride` values from row to row, become floats. row_scales: of the rows of A; scales:
// of the rows of W (packed.h), where the first group's begin.
inline void scale_sums(float* sums, int64_t stride, const float* row_scales, int64_t rows, const float* scales,
                       int64_t groups) {
  using V = Vec<float>;
  constexpr int64_t kOfGroup = kGates * V::width;
  for (int64_t r = 0; r < rows; ++r) {
    const V of_row = V::set(row_scales[r]);
    for (int64_t group = 0; group < groups; ++group) {
      const float* const scale = scales + group * 2 * kOfGroup;
      for (int64_t i = 0; i < kOfGroup; i += V::width) {
        float* const at = sums + r * stride + group * kOfGroup + i;
        (from_integers(V::load(at), V::load(scale + kOfGroup + i)) * (of_row * V::load(scale + i))).store(at);
      }
    }
  }
}
