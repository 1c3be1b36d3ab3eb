/* Counts the instructions between marks of the guest. The translated code does so itself, once for
 * each block that runs: exact for one thread.
 */
#include "plugin.h"

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    qemu_plugin_register_vcpu_tb_exec_inline(
        block, 0 /* add */, &figure, qemu_plugin_tb_n_insns(block));
}
