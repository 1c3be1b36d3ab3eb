/* QEMU TCG plugin that simulates data caches: 64 KiB in 4 ways, 512 KiB in 8 ways, lines of 64 bytes,
 * the least recently used is replaced. At each mark of the guest, as in count.c, it writes a line
 * "TAG MISSES" with the lines that the second cache missed. There is no prefetcher. Slow.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define API __attribute__((visibility("default")))
#define MARK 0x5A5A

typedef uint64_t qemu_plugin_id_t;
typedef struct { const char *target_name; } qemu_info_t; /* its first member */
struct qemu_plugin_tb;
struct qemu_plugin_insn;

extern void qemu_plugin_register_vcpu_tb_trans_cb(
    qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern void qemu_plugin_register_vcpu_mem_cb(
    struct qemu_plugin_insn *, void (*)(unsigned, uint32_t, uint64_t, void *), int flags, int rw,
    void *);
extern void qemu_plugin_register_vcpu_syscall_cb(
    qemu_plugin_id_t, void (*)(qemu_plugin_id_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t,
                               uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));

API int qemu_plugin_version = 1;

static uint64_t misses;
static int out = 2;
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
    if (!hits(first[line & 255], 4, line) && !hits(second[line & 1023], 8, line)) misses++;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++)
        qemu_plugin_register_vcpu_mem_cb(
            qemu_plugin_tb_get_insn(block, i), accessed, 0, 3 /* reads and writes */, NULL);
}

static void called(qemu_plugin_id_t id, unsigned cpu, int64_t number, uint64_t tag, uint64_t a2,
                   uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    if (number == MARK) dprintf(out, "%ld %" PRIu64 "\n", (long)tag, misses);
}

API int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    if (strcmp(info->target_name, "aarch64")) return -1;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "out=", 4))
            out = open(argv[i] + 4, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (out < 0) return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
