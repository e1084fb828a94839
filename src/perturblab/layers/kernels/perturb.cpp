// The perturbation layer without its maps, for channels-last features on a CPU:
//
//   y[n, p, c R + j] = bias[j, c] + sum_m weight[j, m, c] act(x[n, p, c] + level mask[p, m, c])
//
// n counts images, p pixels, c input channels, m masks, j the R filters of a channel's group. A vector holds
// neighbouring channels. The masks of a pixel are multiplied by the level once, into a buffer that stays in the
// first-level cache, and serve all images from there; so every mask value is read once a pass, and no map is stored.
//
// Compiled for one activation (ACT) and one type of the features (SCALAR): see native.py.

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

namespace {

#if defined(__AVX512F__)
constexpr int V = 16;
#elif defined(__AVX__)
constexpr int V = 8;
#else
constexpr int V = 4;
#endif

typedef float vec __attribute__((vector_size(4 * V)));
typedef int32_t ivec __attribute__((vector_size(4 * V)));
typedef uint32_t uvec __attribute__((vector_size(4 * V)));
typedef uint16_t hvec __attribute__((vector_size(2 * V)));

struct bf16 {
  uint16_t bits;
};

inline vec splat(float a) { return vec{} + a; }

inline vec load(const float* from) {
  vec v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

inline vec load(const bf16* from) {
  hvec half;
  std::memcpy(&half, from, sizeof half);
  return reinterpret_cast<vec>(__builtin_convertvector(half, uvec) << 16);
}

inline void store(float* to, vec v) { std::memcpy(to, &v, sizeof v); }

// Round to nearest, ties to even; a NaN stays one.
inline void store(bf16* to, vec v) {
  uvec bits = reinterpret_cast<uvec>(v);
  uvec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  hvec half = __builtin_convertvector(v == v ? rounded : uvec{} + 0x7fc0, hvec);
  std::memcpy(to, &half, sizeof half);
}

// `lanes` values that lie `step` apart; the other lanes are 0.
template <class S>
inline vec gather(const S* from, int lanes, int64_t step) {
  if (lanes == V && step == 1) return load(from);
  S values[V] = {};
  for (int i = 0; i < lanes; ++i) values[i] = from[i * step];
  return load(values);
}

template <class S>
inline void scatter(S* to, vec v, int lanes, int64_t step) {
  if (lanes == V && step == 1) return store(to, v);
  S values[V];
  store(values, v);
  for (int i = 0; i < lanes; ++i) to[i * step] = values[i];
}

inline double sum(vec v) {
  double total = 0;
  for (int i = 0; i < V; ++i) total += v[i];
  return total;
}

// exp(x) = 2^n (1 + q): Cody-Waite reduction and the polynomial of Cephes expf.
inline void exp_parts(vec x, vec& power, vec& q) {
  x = x < -87.0f ? splat(-87.0f) : x;
  x = x > 88.0f ? splat(88.0f) : x;
  const vec shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  vec shifted = x * 1.44269504088896341f + shift, n = shifted - shift;
  vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  vec s = splat(1.9875691500e-4f);
  s = s * r + 1.3981999507e-3f;
  s = s * r + 8.3334519073e-3f;
  s = s * r + 4.1665795894e-2f;
  s = s * r + 1.6666665459e-1f;
  s = s * r + 5.0000001201e-1f;
  q = s * r * r + r;
  power = reinterpret_cast<vec>((reinterpret_cast<ivec>(shifted) << 23) + 0x3f800000);
}

inline vec exp(vec x) {
  vec power, q;
  exp_parts(x, power, q);
  return power * q + power;
}

inline vec expm1(vec x) {
  vec power, q;
  exp_parts(x, power, q);
  return power * q + (power - 1.0f);
}

// An activation: its value at z, and u times its slope at z, where a is its value there. `p` is the slope below 0.
struct relu {
  static vec value(vec z, float) { return z < 0 ? vec{} : z; }  // a NaN stays one
  static vec slope(vec z, vec, vec u, float) { return z <= 0 ? vec{} : u; }
};

struct leaky_relu {
  static vec value(vec z, float p) { return z < 0 ? z * p : z; }
  static vec slope(vec z, vec, vec u, float p) { return z > 0 ? u : u * p; }
};

struct elu {
  static vec value(vec z, float) { return z < 0 ? expm1(z) : z; }
  static vec slope(vec z, vec, vec u, float) { return z > 0 ? u : u * exp(z); }  // not a + 1, which cancels
};

struct selu {
  static constexpr float scale = 1.0507009873554804934f, alpha = 1.6732632423543772848f;
  static vec value(vec z, float) { return z < 0 ? expm1(z) * (scale * alpha) : z * scale; }
  static vec slope(vec z, vec, vec u, float) { return z > 0 ? u * scale : u * (scale * alpha) * exp(z); }
};

struct sigmoid {
  static vec value(vec z, float) { return 1.0f / (1.0f + exp(-z)); }
  static vec slope(vec, vec a, vec u, float) { return u * (a * (1.0f - a)); }
};

struct tanh {
  static vec value(vec z, float) {
    vec size = z < 0 ? -z : z;
    vec far = 1.0f - 2.0f / (exp(2.0f * size) + 1.0f);
    vec s = z * z, near = splat(-5.70498872745e-3f);
    near = near * s + 2.06390887954e-2f;
    near = near * s - 5.37397155531e-2f;
    near = near * s + 1.33314422036e-1f;
    near = near * s - 3.33332819422e-1f;
    near = near * s * z + z;
    return size < 0.625f ? near : z < 0 ? -far : far;
  }
  static vec slope(vec, vec a, vec u, float) { return u * (1.0f - a * a); }
};

}  // namespace

// What a call is about. Every pointer is to contiguous values of the layout that is given.
struct Problem {
  int64_t images, pixels, channels, masks, filters;  // N, P, C, M, R
  int64_t padded;                                    // C rounded up to whole vectors, as in weight
  int64_t shared, constant, half_masks;              // masks without c; without p; of bfloat16
  int64_t chunks;                                    // the pixels are cut into so many parts
  double level, below;                               // below: the activation's slope below 0
  const void* x;                                     // (N, P, C)
  const void* mask;                                  // (P or 1, M, C or 1)
  const float* weight;                               // (R, M, padded)
  const float* bias;                                 // (R, padded)
  void* y;                                           // (N, P, C R); in the backward pass the gradient that comes in
  void* dx;                                          // (N, P, C)
  float* dweight;                                    // (chunks, R, M, padded), zeros
  float* dmask;                                      // (P, M, C), or shared (groups, P, M); null: not wanted
  double* dbelow;                                    // (chunks, groups), zeros; null: not wanted
};

namespace {

constexpr int64_t GROUP = 8 * V;  // channels of a task: neighbouring cache lines of the masks are read together

template <class S>
struct Task {
  const Problem& q;
  int64_t chunk, group;
  std::unique_ptr<vec[]> masks{new vec[q.masks]}, dmasks{new vec[q.masks]};

  Task(const Problem& problem, int64_t k, int64_t g) : q(problem), chunk(k), group(g) {}

  int lanes(int64_t c) const { return q.channels - c < V ? int(q.channels - c) : V; }

  const S* x(int64_t n, int64_t p, int64_t c) const {
    return static_cast<const S*>(q.x) + (n * q.pixels + p) * q.channels + c;
  }

  S* y(int64_t n, int64_t p, int64_t c, int64_t j) const {
    return static_cast<S*>(q.y) + ((n * q.pixels + p) * q.channels + c) * q.filters + j;
  }

  const float* weight(int64_t j, int64_t m, int64_t c) const { return q.weight + (j * q.masks + m) * q.padded + c; }

  float* dweight(int64_t j, int64_t m, int64_t c) const {
    return q.dweight + ((chunk * q.filters + j) * q.masks + m) * q.padded + c;
  }

  // level * mask of one pixel, rounded before it is added to x, so that the kink lies where the reference has it.
  template <class K>
  void read_masks(const K* mask, int64_t p, int64_t c) {
    const int64_t width = q.shared ? 1 : q.channels;
    const K* row = mask + (q.constant ? 0 : p * q.masks * width);
    const float level = float(q.level);
    for (int64_t m = 0; m < q.masks; ++m) {
      const K* at = row + m * width + (q.shared ? 0 : c);
      __builtin_prefetch(at + q.masks * width);
      vec value = q.shared ? splat(gather(at, 1, 1)[0]) : gather(at, lanes(c), 1);
      masks[m] = value * level;
    }
  }

  template <class Body>
  void over_places(Body body) {
    const int64_t first = q.pixels * chunk / q.chunks, last = q.pixels * (chunk + 1) / q.chunks;
    const int64_t end = (group + 1) * GROUP < q.channels ? (group + 1) * GROUP : q.channels;
    for (int64_t p = first; p < last; ++p)
      for (int64_t c = group * GROUP; c < end; c += V) {
        if (q.half_masks)
          read_masks(static_cast<const bf16*>(q.mask), p, c);
        else
          read_masks(static_cast<const float*>(q.mask), p, c);
        body(p, c);
      }
  }

  // R filters of NB images, from filter j and image n on.
  template <class Act, int R, int NB>
  void forward(int64_t n, int64_t p, int64_t c, int64_t j) const {
    vec in[NB], out[R][NB];
    for (int i = 0; i < NB; ++i) {
      in[i] = gather(x(n + i, p, c), lanes(c), 1);
      for (int r = 0; r < R; ++r) out[r][i] = load(q.bias + (j + r) * q.padded + c);
    }
    for (int64_t m = 0; m < q.masks; ++m) {
      vec w[R];
      for (int r = 0; r < R; ++r) w[r] = load(weight(j + r, m, c));
      for (int i = 0; i < NB; ++i) {
        vec a = Act::value(in[i] + masks[m], float(q.below));
        for (int r = 0; r < R; ++r) out[r][i] += w[r] * a;
      }
    }
    for (int i = 0; i < NB; ++i)
      for (int r = 0; r < R; ++r) scatter(y(n + i, p, c, j + r), out[r][i], lanes(c), q.filters);
  }

  template <class Act, bool MASKS, bool BELOW, int R, int NB>
  void backward(int64_t n, int64_t p, int64_t c, int64_t j) {
    const float below = float(q.below);
    vec in[NB], dy[R][NB], dx[NB], dbelow = {};
    for (int i = 0; i < NB; ++i) {
      in[i] = gather(x(n + i, p, c), lanes(c), 1);
      for (int r = 0; r < R; ++r) dy[r][i] = gather(y(n + i, p, c, j + r), lanes(c), q.filters);
      dx[i] = vec{};
    }
    for (int64_t m = 0; m < q.masks; ++m) {
      vec w[R], dw[R], dmask = {};
      for (int r = 0; r < R; ++r) {
        w[r] = load(weight(j + r, m, c));
        dw[r] = load(dweight(j + r, m, c));
      }
      for (int i = 0; i < NB; ++i) {
        vec z = in[i] + masks[m], a = Act::value(z, below);
        vec u = w[0] * dy[0][i];
        dw[0] += a * dy[0][i];
        for (int r = 1; r < R; ++r) {
          u += w[r] * dy[r][i];
          dw[r] += a * dy[r][i];
        }
        vec dz = Act::slope(z, a, u, below);
        dx[i] += dz;
        if (MASKS) dmask += dz;
        if (BELOW) dbelow += z > 0 ? vec{} : u * z;  // a NaN shows
      }
      for (int r = 0; r < R; ++r) store(dweight(j + r, m, c), dw[r]);
      if (MASKS) dmasks[m] += dmask;
    }
    for (int i = 0; i < NB; ++i) {
      S* to = static_cast<S*>(q.dx) + ((n + i) * q.pixels + p) * q.channels + c;
      scatter(to, j ? dx[i] + gather(to, lanes(c), 1) : dx[i], lanes(c), 1);
    }
    if (BELOW) q.dbelow[chunk * groups(q) + group] += sum(dbelow);
  }

  void write_dmasks(int64_t p, int64_t c) const {
    const float level = float(q.level);
    for (int64_t m = 0; m < q.masks; ++m) {
      if (q.shared)
        q.dmask[(group * q.pixels + p) * q.masks + m] += level * float(sum(dmasks[m]));
      else
        scatter(q.dmask + (p * q.masks + m) * q.channels + c, dmasks[m] * level, lanes(c), 1);
    }
  }

  static int64_t groups(const Problem& q) { return (q.channels + GROUP - 1) / GROUP; }
};

// Call body.run<R, NB>(n, j) so that every filter j of every image n has its turn; sizes that fill the registers.
template <int R, class Body>
void over_images(int64_t images, int64_t j, Body& body) {
  constexpr int NB = R > 2 ? 4 : 8;
  int64_t n = 0;
  for (; n + NB <= images; n += NB) body.template run<R, NB>(n, j);
  for (; n < images; ++n) body.template run<R, 1>(n, j);
}

template <class Body>
void over_filters(const Problem& q, Body body) {
  int64_t j = 0;
  for (; j + 4 <= q.filters; j += 4) over_images<4>(q.images, j, body);
  for (; j + 2 <= q.filters; j += 2) over_images<2>(q.images, j, body);
  for (; j < q.filters; ++j) over_images<1>(q.images, j, body);
}

template <class Act, class S>
struct Forward {
  Task<S>& task;
  int64_t p, c;
  template <int R, int NB>
  void run(int64_t n, int64_t j) {
    task.template forward<Act, R, NB>(n, p, c, j);
  }
};

template <class Act, class S, bool MASKS, bool BELOW>
struct Backward {
  Task<S>& task;
  int64_t p, c;
  template <int R, int NB>
  void run(int64_t n, int64_t j) {
    task.template backward<Act, MASKS, BELOW, R, NB>(n, p, c, j);
  }
};

template <class S, class Body>
void over_tasks(const Problem& q, Body body) {
  const int64_t groups = Task<S>::groups(q);
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t k = 0; k < q.chunks; ++k)
    for (int64_t g = 0; g < groups; ++g) {
      Task<S> task(q, k, g);
      body(task);
    }
}

template <class Act, class S, bool MASKS, bool BELOW>
void run_backward(const Problem& q) {
  over_tasks<S>(q, [&](Task<S>& task) {
    task.over_places([&](int64_t p, int64_t c) {
      if (MASKS)
        for (int64_t m = 0; m < q.masks; ++m) task.dmasks[m] = vec{};
      over_filters(q, Backward<Act, S, MASKS, BELOW>{task, p, c});
      if (MASKS) task.write_dmasks(p, c);
    });
  });
}

}  // namespace

extern "C" {

int64_t vector_length() { return V; }

int64_t group_length() { return GROUP; }

void forward(const Problem* q) {
  over_tasks<SCALAR>(*q, [&](Task<SCALAR>& task) {
    task.over_places(
        [&](int64_t p, int64_t c) { over_filters(*q, Forward<ACT, SCALAR>{task, p, c}); });
  });
}

void backward(const Problem* q) {
  constexpr bool leaky = std::is_same<ACT, leaky_relu>::value;  // the only one with a slope to learn
  if (q->dmask && q->dbelow)
    run_backward<ACT, SCALAR, true, leaky>(*q);
  else if (q->dmask)
    run_backward<ACT, SCALAR, true, false>(*q);
  else if (q->dbelow)
    run_backward<ACT, SCALAR, false, leaky>(*q);
  else
    run_backward<ACT, SCALAR, false, false>(*q);
}
}
