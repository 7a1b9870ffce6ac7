/* Products with local Jacobians on the entries that are not gated off, for many cotangents at once.

   The gates of a frozen network at one image are the same for all cotangents. So a value keeps only its live entries,
   one row of memory for each: positions one after another, within a position its live channels in ascending order, and in
   a row as many columns as a vector has numbers, one for each cotangent (or tangent). What is gated off is neither
   calculated nor read. Compiled when first used, for the machine at hand, with REAL as float or double. */

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef REAL vec __attribute__((vector_size(64)));
#define LANES ((int)(64 / sizeof(REAL)))
#define INLINE static inline __attribute__((always_inline))

#define ALL(i, n) _Pragma("GCC unroll 8") for (int i = 0; i < n; i++)
#define GROUP 64 /* channels that a depthwise convolution finds the rows of together */
#define PIECE 64 /* positions that a thread takes at a time, at most */
#define FEW 16   /* positions that are carried in or out together: a line of memory */

enum { LOAD, STORE, CONVOLVE, DEPTHWISE, GATHER };

/* One product. Rows of a position p are begin[p] .. end[p] - 1, channel[row] their channels; source, target: where in the
   arena the rows of a value begin. Fields that a kind of step does not name are null. */
typedef struct {
  int64_t kind, add; /* add: to what the target holds already */
  int64_t positions; /* of the target (LOAD, STORE: of the value) */
  int64_t source, target;
  const int32_t *source_begin, *source_end, *target_begin, *target_end;
  const uint16_t *source_channel, *target_channel;
  /* CONVOLVE, DEPTHWISE: for target position p, e = near[p] .. near[p + 1] - 1: the source's position, the kernel's tap */
  const int32_t *near, *from;
  const int16_t *tap;
  const REAL *weight; /* CONVOLVE: (target channels, taps, source channels); DEPTHWISE: (taps, channels) */
  int64_t taps, source_channels, span; /* span: target channels whose weights a core keeps at hand */
  /* DEPTHWISE: (positions of the source, groups + 1) where the rows of each group of GROUP channels begin, and end */
  const int32_t *before;
  int64_t groups;
  /* GATHER: row r is the sum over e = start[r] .. start[r + 1] - 1 of rows origin[e] times scale[e] (null: times 1);
     where start is null, it is row origin[r] times scale[r], or zero where origin[r] is negative */
  const int32_t *start, *origin;
  const REAL *scale;
} Step;

/* Columns outside: entry (column, channel, position) at the product of strides. */
typedef struct {
  const REAL *given;
  REAL *made;
  int64_t given_column, given_channel, given_position, made_column, made_channel, made_position;
  int64_t columns;
} Outside;

typedef struct {
  const Step *steps;
  int64_t count;
  vec *arena;
  const Outside *outside;
  int threads;
  atomic_int *next; /* (count): the next piece of work of each step */
  atomic_int arrived, round;
} Run;

/* ---- kernels: positions from .. until - 1 ------------------------------------------------------------------------ */

/* Rows at once, so that their sums and the places of their weights stay in registers. */
#ifdef __AVX512F__
#define MOST 8
#else
#define MOST 6
#endif

/* J rows of the target at position p, of these channels. */
INLINE void tile(const int J, const Step *s, const vec *restrict source, vec *restrict target, int p,
                 const uint16_t *channel) {
  const int64_t length = s->taps * s->source_channels;
  vec sum[8];
  const REAL *weight[8];
  ALL(j, J) weight[j] = s->weight + channel[j] * length;
  ALL(j, J) sum[j] = s->add ? target[j] : (vec){0};
  for (int e = s->near[p]; e < s->near[p + 1]; e++) {
    const int q = s->from[e];
    const int64_t tap = s->tap[e] * s->source_channels;
    const uint16_t *c = s->source_channel + s->source_begin[q], *last = s->source_channel + s->source_end[q];
    for (const vec *row = source + s->source_begin[q]; c < last; c++, row++) {
      const int64_t at = tap + *c;
      ALL(j, J) sum[j] += weight[j][at] * *row;
    }
  }
  ALL(j, J) target[j] = sum[j];
}

#define TILE(J) \
  case J: tile(J, s, source, target + r, p, s->target_channel + r); break;

INLINE void convolve(const Step *s, const vec *source, vec *target, int from, int until) {
  int next[PIECE], left = 1; /* the next row of each position */
  memcpy(next, s->target_begin + from, (until - from) * sizeof(int));
  for (int64_t bound = s->span; left; bound += s->span) {
    left = 0;
    for (int p = from; p < until; p++) {
      int r = next[p - from], last = r;
      while (last < s->target_end[p] && s->target_channel[last] < bound) last++;
      next[p - from] = last;
      left |= last < s->target_end[p];
      for (int j; r < last; r += j) {
        j = last - r < MOST ? last - r : MOST;
        switch (j) { TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6) TILE(7) TILE(8) }
      }
    }
  }
}

/* Whole groups of channels are summed, live in the target or not: the rows of a source lie side by side. */
INLINE void depthwise(const Step *s, const vec *source, vec *target, int from, int until) {
  enum { most = 4 }; /* groups whose sums stay in the nearest cache */
  vec sum[most * GROUP];
  for (int p = from; p < until; p++) {
    int r = s->target_begin[p];
    for (int group = 0; group < s->groups && r < s->target_end[p]; group += most) {
      const int next = group + most < s->groups ? group + most : (int)s->groups, first = group * GROUP;
      memset(sum, 0, sizeof(vec) * GROUP * (next - group));
      for (int e = s->near[p]; e < s->near[p + 1]; e++) {
        const int32_t *before = s->before + s->from[e] * (s->groups + 1);
        const REAL *weight = s->weight + s->tap[e] * s->source_channels;
        for (int g = before[group]; g < before[next]; g++) {
          const int c = s->source_channel[g];
          sum[c - first] += weight[c] * source[g];
        }
      }
      for (; r < s->target_end[p] && s->target_channel[r] < next * GROUP; r++) {
        const vec found = sum[s->target_channel[r] - first];
        target[r] = s->add ? target[r] + found : found;
      }
    }
  }
}

INLINE void gather(const Step *s, const vec *source, vec *target, int from, int until) {
  for (int r = s->target_begin[from]; r < s->target_end[until - 1]; r++) {
    vec sum = s->add ? target[r] : (vec){0};
    const int last = s->start ? s->start[r + 1] : r + (s->origin[r] >= 0);
    for (int e = s->start ? s->start[r] : r; e < last; e++) sum += (s->scale ? s->scale[e] : 1) * source[s->origin[e]];
    target[r] = sum;
  }
}

/* The rows of channel c at a few positions, null where it is not live. next: the next row of each position. */
INLINE void rows_of(int c, int count, const int32_t *end, const uint16_t *channel, vec *rows, int *next, REAL **found) {
  for (int i = 0; i < count; i++) found[i] = next[i] < end[i] && channel[next[i]] == c ? (REAL *)(rows + next[i]++) : 0;
}

/* Between rows and the caller's tensors, a few positions at a time, so that both sides lie in a cache. */
INLINE void load(const Step *s, const Outside *o, vec *target, int from, int until) {
  for (int p = from; p < until; p += FEW) {
    const int count = until - p < FEW ? until - p : FEW;
    int next[FEW];
    REAL *t[FEW];
    memcpy(next, s->target_begin + p, count * sizeof(int));
    for (int c = 0; c < s->source_channels; c++) {
      rows_of(c, count, s->target_end + p, s->target_channel, target, next, t);
      for (int k = 0; k < o->columns; k++) {
        const REAL *g = o->given + k * o->given_column + c * o->given_channel + p * o->given_position;
        for (int i = 0; i < count; i++)
          if (t[i]) t[i][k] = g[i * o->given_position];
      }
      for (int k = o->columns; k < LANES; k++)
        for (int i = 0; i < count; i++)
          if (t[i]) t[i][k] = 0;
    }
  }
}

INLINE void store(const Step *s, const Outside *o, vec *source, int from, int until) {
  for (int p = from; p < until; p += FEW) {
    const int count = until - p < FEW ? until - p : FEW;
    int next[FEW];
    REAL *g[FEW];
    memcpy(next, s->source_begin + p, count * sizeof(int));
    for (int c = 0; c < s->source_channels; c++) {
      rows_of(c, count, s->source_end + p, s->source_channel, source, next, g);
      for (int k = 0; k < o->columns; k++) {
        REAL *t = o->made + k * o->made_column + c * o->made_channel + p * o->made_position;
        for (int i = 0; i < count; i++) t[i * o->made_position] = g[i] ? g[i][k] : 0;
      }
    }
  }
}

/* ---- the run ----------------------------------------------------------------------------------------------------- */

static void perform(const Run *run, const Step *s, int from, int until) {
  vec *source = run->arena + s->source, *target = run->arena + s->target;
  switch (s->kind) {
    case LOAD: load(s, run->outside, target, from, until); break;
    case STORE: store(s, run->outside, source, from, until); break;
    case CONVOLVE: convolve(s, source, target, from, until); break;
    case DEPTHWISE: depthwise(s, source, target, from, until); break;
    case GATHER: gather(s, source, target, from, until); break;
  }
}

/* Until all threads are here. */
static void meet(Run *run) {
  const int round = atomic_load(&run->round);
  if (atomic_fetch_add(&run->arrived, 1) == run->threads - 1) {
    atomic_store(&run->arrived, 0);
    atomic_fetch_add(&run->round, 1);
    return;
  }
  for (int spins = 0; atomic_load(&run->round) == round; spins++) {
    if (spins > 10000)
      usleep(20); /* another has lost its core */
    else if (spins > 1000)
      sched_yield();
  }
}

static void *take_part(void *argument) {
  Run *run = argument;
  while (atomic_load(&run->round) < 0) sched_yield(); /* until it is known how many threads there are */
  for (int64_t i = 0; i < run->count; i++) {
    const Step *s = run->steps + i;
    const int positions = (int)s->positions;
    int piece = positions / (run->threads * 8);
    piece = piece < 1 ? 1 : piece > PIECE ? PIECE : piece;
    for (;;) {
      const int from = atomic_fetch_add(run->next + i, 1) * piece;
      if (from >= positions) break;
      perform(run, s, from, from + piece < positions ? from + piece : positions);
    }
    meet(run);
  }
  return 0;
}

/* Large pages for fresh memory, where the system has them: a hint. */
void widen(char *memory, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  const uintptr_t page = 1 << 21, from = ((uintptr_t)memory + page - 1) / page * page;
  const uintptr_t until = ((uintptr_t)memory + bytes) / page * page;
  if (until > from) madvise((void *)from, until - from, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

/* All steps, one after another, each by all threads. next: (count) zeros. */
void run(const Step *steps, int64_t count, void *arena, const Outside *outside, int threads, int *next) {
  Run all = {steps, count, arena, outside, 1, (atomic_int *)next, 0, -1};
  pthread_t others[63];
  int started = 0;
  while (started < threads - 1 && started < 63 && !pthread_create(others + started, 0, take_part, &all)) started++;
  all.threads = started + 1;
  atomic_store(&all.round, 0);
  take_part(&all);
  for (int i = 0; i < started; i++) pthread_join(others[i], 0);
}
