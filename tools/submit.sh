# Runs once on every node. All of it is quoted, so that $SLURM_NODEID expands there. USR1, which
# means "save and exit" to the training, would end the launcher and orphan its processes: the
# launcher ignores it, and they get it from here, again and again, because a process that is still
# starting ignores it too. $0 is Python, $@ the launcher's arguments.
on_node='
    (trap "" USR1; exec "$0" -m accelerate.commands.launch --machine_rank "$SLURM_NODEID" "$@") &
    launcher=$!
    save() { while kill -0 "$launcher" 2> /dev/null; do pkill -USR1 -P "$launcher"; sleep 2; done; }
    trap save USR1 TERM
    wait "$launcher"  # returns early at a signal, after save()
    wait "$launcher"
'

host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))  # two jobs on a node must not meet
before=$(cat "$output/summary.json" 2> /dev/null)
echo "job $job on $SLURM_JOB_NODELIST, start $((${SLURM_RESTART_COUNT:-0} + 1)), $(date)"

# --wait: when one node's launcher has ended, the others have two minutes: they may hang without it
srun --ntasks-per-node=1 --cpus-per-task="$cpus" --kill-on-bad-exit=0 --wait=120 \
    bash -c "$on_node" "$python" --main_process_ip "$host" --main_process_port "$port" \
    "${launch[@]}" "${run[@]}" &
step=$!
ended=
# SLURM's warning (--signal above); srun passes it on to every node
trap 'kill -USR1 "$step"' USR1
# SLURM ends the job: it was cancelled, or SLURM requeues it by itself
trap 'ended=yes; kill -USR1 "$step"' TERM
while kill -0 "$step" 2> /dev/null; do wait "$step"; done
wait "$step"
code=$?

# The launcher's code tells nothing (1 for everything), but this start's summary does, if it is new.
if [ "$(cat "$output/summary.json" 2> /dev/null)" != "$before" ] && [ -z "$ended" ] &&
    grep -q '"exit": "preempted"' "$output/summary.json"; then
    echo "job $job was preempted and has saved; it goes back to the queue"
    scontrol requeue "$job" && exit 0
    echo "job $job could not be requeued; submit it again to resume" >&2
    exit 75
fi
exit "$code"
