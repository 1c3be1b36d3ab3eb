/* Counts the lines that a second cache misses between marks of the guest. Data caches of 64 KiB in 4
 * ways and 512 KiB in 8 ways are simulated, with lines of 64 bytes, the least recently used being
 * replaced. There is no prefetcher. Slow.
 */
#include "plugin.h"

static uint64_t first[256][4], second[1024][8]; /* numbers of lines, the newest first */

static int hits(uint64_t *set, int ways, uint64_t line)
{
    int i = 0;
    while (i < ways - 1 && set[i] != line) i++;
    int found = set[i] == line;
    memmove(set + 1, set, i * sizeof *set);
    set[0] = line;
    return found;
}

static void accessed(unsigned cpu, uint32_t info, uint64_t address, void *unused)
{
    uint64_t line = address >> 6;
    if (!hits(first[line & 255], 4, line) && !hits(second[line & 1023], 8, line)) figure++;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++)
        qemu_plugin_register_vcpu_mem_cb(
            qemu_plugin_tb_get_insn(block, i), accessed, 0, 3 /* reads and writes */, NULL);
}
