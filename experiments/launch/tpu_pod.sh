#!/usr/bin/env bash
# Runs one command on every host of a Cloud TPU slice.
#
#   TPU=NAME ZONE=ZONE REPO=/path/on/the/hosts WORKDIR=/shared/run experiments/launch/tpu_pod.sh \
#       --config=experiments/configs/preset.py:0.8b --config.data.path=/shared/log.csv --config.mesh.fsdp=4
#
# REPO is a checkout with its .venv on every host; WORKDIR is on storage that all hosts share, and on which a folder can be
# renamed in one move, as a finished checkpoint is (Filestore; of buckets mounted with gcsfuse, those with a hierarchical
# namespace only): every host writes its own parts of a checkpoint there, and reads what host 0 prepared.
# The exit code is that of the command: 75 where it was asked to stop and saved (start it again to go on).
set -euo pipefail

: "${TPU:?name of the TPU slice}" "${ZONE:?its zone}" "${REPO:?checkout on the hosts}" "${WORKDIR:?shared folder of the run}"
COMMAND="${COMMAND:-experiments.train_supervised}"

# LIBTPU_INIT_ARGS is what libtpu reads its flags from. Without these the collectives of fsdp stand between the products:
#   async collective fusion   gathers of parameters run beside the products of the layer before, in several steps
#   overlap_compute_…         and the tensor core goes on computing meanwhile
#   async_all_gather          an all-gather is split into a start and a done, between which other work is scheduled
#   data_parallel_all_reduce  gradients of different sizes are summed together, and late, where they hide behind work
FLAGS="--xla_tpu_enable_async_collective_fusion=true \
--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true \
--xla_tpu_enable_async_collective_fusion_multiple_steps=true \
--xla_tpu_overlap_compute_collective_tc=true \
--xla_enable_async_all_gather=true \
--xla_tpu_enable_data_parallel_all_reduce_opt=true \
--xla_tpu_data_parallel_opt_different_sized_ops=true"

# Each argument is quoted once more: it passes through a shell on the other side.
ARGUMENTS="$(printf ' %q' "$@")"

# --distributed=tpu: on a TPU VM the hosts of the slice are in the metadata server, which is asked only on demand.
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="
    cd $(printf '%q' "$REPO") &&
    LIBTPU_INIT_ARGS='$FLAGS' .venv/bin/python -m $COMMAND \
        --distributed=tpu --workdir=$(printf '%q' "$WORKDIR") \
        --compile_cache_dir=$(printf '%q' "$WORKDIR/compiled")$ARGUMENTS"
