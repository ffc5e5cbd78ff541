/*
 * Inside the native part: what this CPU can do, for the code that picks its instructions by it.
 */
#ifndef VGPUD_CPU_H
#define VGPUD_CPU_H

#include <stdint.h>

/* The instructions to be used (VGPUD_CPU_ of native.h), and the bytes in a cache line. Hidden, so
 * that an access needs no lookup in the global offset table. */
extern __attribute__((visibility("hidden"))) uint32_t vgpud_cpu;
extern __attribute__((visibility("hidden"))) uint32_t vgpud_cache_line;

#endif
