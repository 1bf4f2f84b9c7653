// The lean forward pass for a few rows on a CPU with AVX512-BF16; native.py holds the other end of every struct.
//
// Whatever is multiplied by rows lies in tiles. A matrix [outputs, inputs] is outputs / 16 tiles [inputs / 2][16][2]:
// one register holds 16 outputs and the two inputs that an instruction multiplies and adds. Rows [rows, inputs] lie in
// blocks [inputs / 2][16][2] of 16 rows, so that a product reads both from front to back. Keys [columns, width] and
// values [width, columns] of the cache are such matrices, to which columns are added one by one.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "team.hpp"

namespace {

using bf16 = uint16_t;

constexpr int kTile = 16;           // outputs in a register, and rows in a block
constexpr int kBlocksAtOnce = 16;   // blocks of rows that stay in the second-level cache while the weights pass by
constexpr int kPrefetched = 2048;   // bytes that weights are asked for ahead of their use, found by measuring

struct Layer {
  const float *input_norm, *mlp_norm;                             // [hidden]
  const float *attention_outcome_norm, *mlp_outcome_norm;         // [hidden], or null
  const float *query_norm, *key_norm;                             // [width], or null
  const bf16 *qkv, *output, *gate_up, *down;                      // tiles
  const float *qkv_bias, *output_bias, *gate_up_bias, *down_bias; // [outputs], or null
  int32_t window;  // tokens that each one sees, itself included
  int32_t turned;  // which of the ways to turn positions it has
};

struct Model {
  const Layer* layer;     // [layers]
  const bf16* embedding;  // [vocabulary, hidden]
  const float* norm;      // [hidden]
  const bf16* head;       // tiles
  const float* head_bias; // [outputs], or null
  float epsilon, embedding_scale;
  int32_t gelu;  // whether gates are GELU by tanh; SiLU otherwise
  int32_t layers, hidden, heads, kv_heads, width, inner;
  int32_t outputs;  // of the head: the vocabulary, filled up to a multiple of 16
};

// Sequences of which each has room for as many columns, a multiple of 16: keys and values [layers, sequences, kv_heads].
struct Cache {
  bf16 *keys, *values;
  int32_t sequences, columns;
};

// What is computed: tokens that follow what the caches hold of their sequences. Rows of one prompt stand side by side.
struct Rows {
  const int32_t* token;
  const int32_t* position;
  const int32_t* prompt;  // sequence among the prompts
  const int32_t* seen;    // columns of the prompt to attend to
  const int32_t* own;     // sequence of its own, or -1: the row is the prompt's column seen - 1
  const float *cos, *sin; // [ways, positions, width], the second with the sign of a rotation
  const int32_t* wanted;  // rows to return logits of
  int32_t count, wanted_count, positions;
  int32_t column;  // of the own sequences, into which the rows go
};

struct Buffer {
  explicit Buffer(size_t size) : bytes(size + 64) {}
  template <class T>
  T* as() {
    return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(bytes.data()) + 63) / 64 * 64);
  }
  std::vector<char> bytes;
};

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// ------------------------------------------------------------------ numbers and products

using floats = __m512;  // 16 of them

floats load(const float* from) { return _mm512_loadu_ps(from); }
void store(float* to, floats values) { _mm512_storeu_ps(to, values); }
floats all(float value) { return _mm512_set1_ps(value); }
__mmask16 leading(int count) { return count >= kTile ? 0xffff : count <= 0 ? 0 : (1 << count) - 1; }

__m256i rounded(floats values) { return (__m256i)_mm512_cvtneps_pbh(values); }
floats widened(__m256i values) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16)); }

floats exponential(floats x) {  // to 2e-7 of its value, within [-87, 87]
  x = _mm512_min_ps(all(87), _mm512_max_ps(all(-87), x));  // in this order, what is no number stays none
  const floats n = _mm512_roundscale_ps(x * all(1.44269504f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const floats f = (x - n * all(0.693359375f)) + n * all(2.12194440e-4f);
  floats sum = all(1.0f / 720);  // of Taylor's series
  for (float factor : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) sum = sum * f + all(factor);
  return _mm512_scalef_ps(sum, n);
}

// Where input k of a row lies in blocks of rows, and input k of an output in tiles.
size_t place(int inputs, int row, int k) {
  return (size_t(row / kTile) * (inputs / 2) + k / 2) * 2 * kTile + row % kTile * 2 + k % 2;
}

// Inputs [k, k + 16) of a row, or of an output in tiles.
void put(bf16* rows, int inputs, int row, int k, __m256i values) {
  alignas(32) uint32_t pairs[kTile / 2];
  _mm256_store_si256(reinterpret_cast<__m256i*>(pairs), values);
  auto* to = reinterpret_cast<uint32_t*>(rows + place(inputs, row, k));
  for (int i = 0; i < kTile / 2; ++i) to[i * kTile] = pairs[i];
}

// ------------------------------------------------------------------ products

// out[r][16] = 16 outputs of `kRows` rows of one block.
template <int kRows>
void multiply_rows(const bf16* tile, const bf16* rows, int pairs, float* out) {
  __m512 sums[kRows];
  for (int r = 0; r < kRows; ++r) sums[r] = _mm512_setzero_ps();
  const auto* inputs = reinterpret_cast<const int32_t*>(rows);
  for (int pair = 0; pair < pairs; ++pair) {
    const auto weights = (__m512bh)_mm512_loadu_si512(tile + pair * 2 * kTile);
    _mm_prefetch(reinterpret_cast<const char*>(tile + pair * 2 * kTile) + kPrefetched, _MM_HINT_T0);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const auto input = (__m512bh)_mm512_set1_epi32(inputs[pair * kTile + r]);
      sums[r] = _mm512_dpbf16_ps(sums[r], weights, input);
    }
  }
  for (int r = 0; r < kRows; ++r) _mm512_storeu_ps(out + r * kTile, sums[r]);
}

void multiply(const bf16* tile, const bf16* rows, int count, int pairs, float* out) {
  using Function = void (*)(const bf16*, const bf16*, int, float*);
  static constexpr Function by_rows[] = {
      multiply_rows<1>,  multiply_rows<2>,  multiply_rows<3>,  multiply_rows<4>,
      multiply_rows<5>,  multiply_rows<6>,  multiply_rows<7>,  multiply_rows<8>,
      multiply_rows<9>,  multiply_rows<10>, multiply_rows<11>, multiply_rows<12>,
      multiply_rows<13>, multiply_rows<14>, multiply_rows<15>, multiply_rows<16>,
  };
  by_rows[count - 1](tile, rows, pairs, out);
}

// Calls work(tile, first row, rows) for all tiles, which the threads share, and all blocks of rows.
template <class Work>
void for_tiles(Team& team, int outputs, int count, Work work) {
  for (int first = 0; first < count; first += kBlocksAtOnce * kTile) {
    const int last = std::min(count, first + kBlocksAtOnce * kTile);
    team.share(outputs / kTile, [&](int tile, int) {
      for (int row = first; row < last; row += kTile) work(tile, row, std::min(kTile, last - row));
    });
  }
}

struct Matrix {
  const bf16* tiles;
  const float* bias;  // [outputs], or null
  int inputs;

  // out[count][16], without bias.
  void times(const bf16* rows, int tile, int row, int count, float* out) const {
    const size_t size = size_t(inputs) * kTile;
    multiply(tiles + tile * size, rows + row / kTile * size, count, inputs / 2, out);
  }
  floats bias_of(int output) const { return bias ? load(bias + output) : all(0); }
};

// target[count][outputs] = product + bias, or the same added to it.
void product(
    Team& team, const Matrix& matrix, const bf16* rows, int outputs, int count, float* target, bool added) {
  for_tiles(team, outputs, count, [&](int tile, int row, int some) {
    alignas(64) float out[kTile * kTile];
    matrix.times(rows, tile, row, some, out);
    for (int r = 0; r < some; ++r) {
      float* to = target + size_t(row + r) * outputs + tile * kTile;
      const floats sum = load(out + r * kTile) + matrix.bias_of(tile * kTile);
      store(to, added ? load(to) + sum : sum);
    }
  });
}

// gate * sigmoid(gate), or gate * (1 + tanh(t)) / 2 with t = sqrt(2 / pi) (gate + 0.044715 gate^3), which is a sigmoid too.
floats activated(floats gate, bool gelu) {
  const floats inner = gelu ? gate * (all(1.59576912f) + all(0.0713548163f) * gate * gate) : gate;
  return gate / (all(1) + exponential(all(0) - inner));
}

// target, blocks of rows [count, inner] = activated(gate) * up; the matrix has the outputs of both, one after the other.
void gated_product(
    Team& team, const Matrix& matrix, const bf16* rows, int inner, int count, bool gelu, bf16* target) {
  for_tiles(team, inner, count, [&](int tile, int row, int some) {
    alignas(64) float gate[kTile * kTile], up[kTile * kTile];
    matrix.times(rows, tile, row, some, gate);
    matrix.times(rows, tile + inner / kTile, row, some, up);
    for (int r = 0; r < some; ++r) {
      const floats g = load(gate + r * kTile) + matrix.bias_of(tile * kTile);
      const floats u = load(up + r * kTile) + matrix.bias_of(inner + tile * kTile);
      put(target, inner, row + r, tile * kTile, rounded(activated(g, gelu) * u));
    }
  });
}

// ------------------------------------------------------------------ the parts of a layer

float rms_scale(const float* values, int size, float epsilon) {
  floats squares = all(0);
  for (int i = 0; i < size; i += kTile) squares += load(values + i) * load(values + i);
  return 1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / size + epsilon);
}

void norm_into(bf16* rows, int row, const float* values, const float* weight, int size, float epsilon) {
  const floats scale = all(rms_scale(values, size, epsilon));
  for (int i = 0; i < size; i += kTile) put(rows, size, row, i, rounded(load(values + i) * scale * load(weight + i)));
}

void add_normed(float* target, const float* values, const float* weight, int size, float epsilon) {
  const floats scale = all(rms_scale(values, size, epsilon));
  for (int i = 0; i < size; i += kTile) store(target + i, load(target + i) + load(values + i) * scale * load(weight + i));
}

// Norms (where there is a weight) and turns one head in place.
void position_head(float* head, const float* norm, int width, float epsilon, const float* cos, const float* sin) {
  const float scale = norm ? rms_scale(head, width, epsilon) : 1.0f;
  const int half = width / 2;
#pragma omp simd
  for (int i = 0; i < half; ++i) {
    const float low = head[i] * scale * (norm ? norm[i] : 1.0f);
    const float high = head[i + half] * scale * (norm ? norm[i + half] : 1.0f);
    head[i] = low * cos[i] + high * sin[i];
    head[i + half] = high * cos[i + half] + low * sin[i + half];
  }
}

struct Pass {
  const Model& model;
  const Cache& prompts;
  const Cache& owns;
  const Rows& rows;
  int repeats;  // query heads of one key
  int heads;    // of queries, keys and values

  // Of a layer's sequence, one head.
  size_t offset(const Cache& cache, int layer, int sequence, int kv_head) const {
    const size_t index = (size_t(layer) * cache.sequences + sequence) * model.kv_heads + kv_head;
    return index * cache.columns * model.width;
  }

  // Turns the queries of one key, in place, and writes key and value into the cache.
  void position(int number, int row, int kv_head, float* of_row) const {
    const Layer& layer = model.layer[number];
    const int width = model.width;
    const size_t turn = (size_t(layer.turned) * rows.positions + rows.position[row]) * width;
    const float *cos = rows.cos + turn, *sin = rows.sin + turn;
    for (int head = kv_head * repeats; head < (kv_head + 1) * repeats; ++head) {
      position_head(of_row + head * width, layer.query_norm, width, model.epsilon, cos, sin);
    }
    float* key = of_row + (model.heads + kv_head) * width;
    position_head(key, layer.key_norm, width, model.epsilon, cos, sin);
    const float* value = key + model.kv_heads * width;

    const bool own = rows.own[row] >= 0;
    const Cache& cache = own ? owns : prompts;
    const int column = own ? rows.column : rows.seen[row] - 1;
    const size_t start = offset(cache, number, own ? rows.own[row] : rows.prompt[row], kv_head);
    for (int i = 0; i < width; i += kTile) {
      put(cache.keys + start, width, column, i, rounded(load(key + i)));
      alignas(32) bf16 some[kTile];
      _mm256_store_si256(reinterpret_cast<__m256i*>(some), rounded(load(value + i)));
      bf16* to = cache.values + start + place(cache.columns, i, column);
      for (int output = 0; output < kTile; ++output) to[output * 2] = some[output];
    }
  }

  // First token of its sequence that a row sees.
  int first_seen(int number, int row) const { return std::max(0, rows.position[row] + 1 - model.layer[number].window); }

  // Attention of one key's queries of rows [first, last), all of one prompt and at most 16 queries, into `mixed`.
  void attend(int number, int first, int last, int kv_head, const float* of_rows, bf16* mixed, Buffer& buffer) const {
    const int width = model.width, queries = (last - first) * repeats;
    const int shared = *std::max_element(rows.seen + first, rows.seen + last);
    const int room = ceil_div(shared, kTile) * kTile;
    const int own = rows.own[first] >= 0 ? rows.column + 1 : 0;
    const int stride = room + ceil_div(own, kTile) * kTile;
    // Whole tiles that none of the rows sees; of one prompt, the first row sees farthest back.
    const int unseen = first_seen(number, first) / kTile * kTile, skipped = std::min(room, unseen);
    const int own_skipped = std::max(0, first_seen(number, first) - shared) / kTile * kTile;
    bf16* asked = buffer.as<bf16>();
    bf16* weights = asked + width * kTile;
    float* scores = reinterpret_cast<float*>(weights + stride * kTile);
    alignas(64) float out[kTile * kTile];
    float total[kTile];

    for (int q = 0; q < queries; ++q) {
      const float* of_row = of_rows + size_t(first + q / repeats) * heads * width;
      const float* query = of_row + (kv_head * repeats + q % repeats) * width;
      const floats scale = all(1.0f / std::sqrt(float(width)));
      for (int i = 0; i < width; i += kTile) put(asked, width, q, i, rounded(load(query + i) * scale));
    }

    const auto score = [&](const bf16* keys, int start, int columns, int from, int count, int to) {
      for (int column = start; column < columns; column += kTile) {
        multiply(keys + size_t(column) * width, asked + from * 2, count, width / 2, out);
        for (int q = 0; q < count; ++q) store(scores + size_t(from + q) * stride + to + column, load(out + q * kTile));
      }
    };
    const size_t of_prompt = offset(prompts, number, rows.prompt[first], kv_head);
    score(prompts.keys + of_prompt, skipped, shared, 0, queries, 0);
    for (int row = first; row < last && own; ++row) {
      const bf16* keys = owns.keys + offset(owns, number, rows.own[row], kv_head);
      score(keys, own_skipped, own, (row - first) * repeats, repeats, room);
    }

    for (int q = 0; q < queries; ++q) {
      const int row = first + q / repeats, from = first_seen(number, row), seen = rows.seen[row];
      const Columns columns{from, seen, room, std::max(0, from - seen), own, stride};
      total[q] = softmax_into(weights, q, scores + size_t(q) * stride, columns);
    }

    const auto mix = [&](const bf16* values, int start, int columns, int capacity, int from, int count, int at, int to, bool added) {
      const bf16* of_columns = weights + size_t(at + start) * kTile + from * 2;
      multiply(values + size_t(to) * capacity + start * kTile, of_columns, count, (columns - start) / 2, out);
      for (int q = 0; q < count; ++q) {
        float* sum = scores + (from + q) * width + to;
        store(sum, added ? load(sum) + load(out + q * kTile) : load(out + q * kTile));
      }
    };
    for (int to = 0; to < width; to += kTile) {
      mix(prompts.values + of_prompt, skipped, room, prompts.columns, 0, queries, 0, to, false);
      for (int row = first; row < last && own; ++row) {
        const bf16* values = owns.values + offset(owns, number, rows.own[row], kv_head);
        mix(values, own_skipped, stride - room, owns.columns, (row - first) * repeats, repeats, room, to, true);
      }
    }
    for (int q = 0; q < queries; ++q) {
      const int input = (kv_head * repeats + q % repeats) * width;
      for (int i = 0; i < width; i += kTile) {
        const floats value = load(scores + q * width + i) / all(total[q]);
        put(mixed, model.heads * width, first + q / repeats, input + i, rounded(value));
      }
    }
  }

  // Of the scores of a query: those of the prompt in [from, seen), its own in [room + own_from, room + own).
  struct Columns {
    int from, seen, room, own_from, own, stride;
    __mmask16 operator()(int i) const {
      const int first = i < room ? from : room + own_from, end = i < room ? seen : room + own;
      return leading(end - i) & ~leading(first - i);
    }
  };

  // Writes the exponentials of those columns, zeros elsewhere, and returns the sum of what was written.
  static float softmax_into(bf16* weights, int row, const float* scores, const Columns& counted) {
    const int stride = counted.stride;
    floats largest = all(-INFINITY), total = all(0);
    for (int i = 0; i < stride; i += kTile) {
      largest = _mm512_mask_max_ps(largest, counted(i), largest, load(scores + i));
    }
    const floats most = all(_mm512_reduce_max_ps(largest));
    for (int i = 0; i < stride; i += kTile) {
      const __m256i weight = rounded(_mm512_maskz_mov_ps(counted(i), exponential(load(scores + i) - most)));
      total += widened(weight);
      put(weights, stride, row, i, weight);
    }
    return _mm512_reduce_add_ps(total);
  }
};

// First rows of runs of one prompt with at most `most` rows, and the end.
std::vector<int> runs(const Rows& rows, int most) {
  std::vector<int> starts;
  for (int row = 0; row < rows.count; ++row) {
    const bool goes_on = row && rows.prompt[row] == rows.prompt[row - 1] && row - starts.back() < most;
    if (!goes_on) starts.push_back(row);
  }
  starts.push_back(rows.count);
  return starts;
}

}  // namespace

// Tiles of a matrix [outputs, inputs]; outputs are filled up with zeros to a multiple of 16.
extern "C" void lit_debias_pack(const bf16* matrix, bf16* tiles, int32_t outputs, int32_t inputs, int32_t threads) {
  const auto pack = [&](int tile, int) {
    uint32_t* to = reinterpret_cast<uint32_t*>(tiles + size_t(tile) * inputs * kTile);
    for (int output = 0; output < kTile; ++output) {
      const int row = tile * kTile + output;
      for (int pair = 0; pair < inputs / 2; ++pair) {
        uint32_t two = 0;
        if (row < outputs) std::memcpy(&two, matrix + size_t(row) * inputs + pair * 2, 4);
        to[pair * kTile + output] = two;
      }
    }
  };
  with_team(threads, [&](Team& team) { team.share(ceil_div(outputs, kTile), pack); });
}

// Adds the rows to the caches and writes logits [wanted, outputs].
extern "C" void lit_debias_forward(
    const Model* model, const Cache* prompts, const Cache* owns, const Rows* given, float* logits, int32_t threads) {
  const Rows& rows = *given;
  const int hidden = model->hidden, inner = model->inner, mixed_size = model->heads * model->width;
  const int heads = model->heads + 2 * model->kv_heads, repeats = model->heads / model->kv_heads;
  const Pass pass{*model, *prompts, *owns, rows, repeats, heads};
  const size_t padded = size_t(ceil_div(rows.count, kTile)) * kTile;
  Buffer states_buffer(size_t(rows.count) * hidden * 4), heads_buffer(size_t(rows.count) * heads * model->width * 4);
  Buffer normed_buffer(padded * hidden * 2), mixed_buffer(padded * std::max(inner, mixed_size) * 2);
  Buffer outcomes_buffer(model->layer->attention_outcome_norm ? size_t(rows.count) * hidden * 4 : 0);
  float *states = states_buffer.as<float>(), *of_rows = heads_buffer.as<float>(), *outcomes = outcomes_buffer.as<float>();
  bf16 *normed = normed_buffer.as<bf16>(), *mixed = mixed_buffer.as<bf16>();
  const std::vector<int> starts = runs(rows, std::max(1, kTile / repeats));
  const int longest = prompts->columns + owns->columns;

  std::vector<Buffer> buffers;  // of the threads
  for (int member = 0; member < threads; ++member) {
    buffers.emplace_back(size_t(model->width * 2 + longest * 2 + std::max(longest, model->width) * 4) * kTile);
  }

  with_team(threads, [&](Team& team) {
    const auto norm_all = [&](const float* weight) {
      team.share(rows.count, [&](int row, int) {
        norm_into(normed, row, states + size_t(row) * hidden, weight, hidden, model->epsilon);
      });
    };
    const auto add_product = [&](const bf16* weights, const float* bias, int inputs, const float* outcome_norm) {
      product(team, {weights, bias, inputs}, mixed, hidden, rows.count, outcome_norm ? outcomes : states, !outcome_norm);
      if (!outcome_norm) return;
      team.share(rows.count, [&](int row, int) {
        const size_t start = size_t(row) * hidden;
        add_normed(states + start, outcomes + start, outcome_norm, hidden, model->epsilon);
      });
    };

    team.share(rows.count, [&](int row, int) {
      const bf16* embedded = model->embedding + size_t(rows.token[row]) * hidden;
      for (int i = 0; i < hidden; i += kTile) {
        const auto some = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(embedded + i));
        const floats scaled = widened(rounded(widened(some) * all(model->embedding_scale)));  // as the module rounds
        store(states + size_t(row) * hidden + i, scaled);
      }
    });
    for (int number = 0; number < model->layers; ++number) {
      const Layer& layer = model->layer[number];
      norm_all(layer.input_norm);
      const int width = heads * model->width;
      product(team, {layer.qkv, layer.qkv_bias, hidden}, normed, width, rows.count, of_rows, false);
      team.share(rows.count * model->kv_heads, [&](int item, int) {
        const int row = item / model->kv_heads;
        pass.position(number, row, item % model->kv_heads, of_rows + size_t(row) * width);
      });
      team.share((int(starts.size()) - 1) * model->kv_heads, [&](int item, int member) {
        const int run = item / model->kv_heads, kv_head = item % model->kv_heads;
        pass.attend(number, starts[run], starts[run + 1], kv_head, of_rows, mixed, buffers[member]);
      });
      add_product(layer.output, layer.output_bias, mixed_size, layer.attention_outcome_norm);
      norm_all(layer.mlp_norm);
      gated_product(team, {layer.gate_up, layer.gate_up_bias, hidden}, normed, inner, rows.count, model->gelu, mixed);
      add_product(layer.down, layer.down_bias, inner, layer.mlp_outcome_norm);
    }
    team.share(rows.wanted_count, [&](int number, int) {
      norm_into(normed, number, states + size_t(rows.wanted[number]) * hidden, model->norm, hidden, model->epsilon);
    });
    product(team, {model->head, model->head_bias, hidden}, normed, model->outputs, rows.wanted_count, logits, false);
  });
}

// target[count][outputs] = rows times matrix, for tests and benchmarks; both laid out as everywhere here.
extern "C" void lit_debias_product(
    const bf16* tiles, const bf16* rows, float* target, int32_t inputs, int32_t outputs, int32_t count, int32_t threads) {
  with_team(threads, [&](Team& team) {
    product(team, {tiles, nullptr, inputs}, rows, outputs, count, target, false);
  });
}

// Jobs that threads have shared in this process so far, and how often one of them slept while it waited; for tests.
extern "C" void lit_debias_counts(uint64_t* jobs_and_sleeps) {
  jobs_and_sleeps[0] = counted_jobs;
  jobs_and_sleeps[1] = counted_sleeps;
}
