/* Included before every C++ file of llama.cpp (by -include), where the compiler knows tiles.

   Up to GCC 12 `_tile_loadconfig` declares 8 of the 64 bytes that it reads. The other stores of a configuration that is made
   on the stack, as llama.cpp's is, are then dead to the optimiser and are removed: the tiles are never configured, and the first
   instruction on them is a SIGILL. This one declares all 64 bytes, and is right for every compiler. */
#if defined(__x86_64__) && defined(__AMX_TILE__)
#include <immintrin.h>

static inline void load_tile_config_whole(const void *config)
{
    __asm__ volatile("ldtilecfg %0" ::"m"(*(const unsigned char(*)[64])config));
}
#define _tile_loadconfig load_tile_config_whole
#endif
