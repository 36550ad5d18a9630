#!/usr/bin/env bash
# A throw-away SLURM cluster on this machine, for tests: four virtual nodes with two fake GPUs each, and accounting.
#
#   tests/slurm/local_cluster.sh install  install missing Debian packages
#   tests/slurm/local_cluster.sh start    install missing Debian packages, start what does not run, wait for idle nodes
#   tests/slurm/local_cluster.sh stop     end all of it, jobs included
#   tests/slurm/local_cluster.sh status   one line per daemon, then the nodes; exit status 1 if one is down
#
# It needs root and CAP_SYS_ADMIN (name spaces), touches no system service, and listens on 127.0.0.1 alone. Clients need
# `export SLURM_CONF=$FOLDER/slurm.conf`, which `start` prints. A power cut: `kill -9 $(cat $FOLDER/run/n1.pid)`.
#
# SCTBENCH_SLURM_DIR    folder, /tmp/sct-slurm if not given; short, because unix sockets lie in it
# SCTBENCH_SLURM_PORT   first of the ports in use, 17317 if not given
set -euo pipefail
shopt -s inherit_errexit

FOLDER=${SCTBENCH_SLURM_DIR:-/tmp/sct-slurm}
PORT=${SCTBENCH_SLURM_PORT:-17317}
NODES=(n1 n2 n3 n4)
SERVERS=(munged mariadbd slurmdbd slurmctld)
MARK=SCTBENCH_SLURM_MARK  # in the environment of every process of ours: a pid file alone may speak of another process

export SLURM_CONF=$FOLDER/slurm.conf PATH=/usr/sbin:/usr/bin:/sbin:/bin
export MYSQL_UNIX_PORT=$FOLDER/run/mariadbd.sock  # where slurmdbd looks for the database
export $MARK="$FOLDER"

say() { echo "local_cluster: $*" >&2; }
fail() { say "$@"; exit 1; }

# --- processes -------------------------------------------------------------------------------------------------------

pid_of() { cat "$FOLDER/run/$1.pid" 2>/dev/null || echo 0; }

runs() {  # NAME: a killed daemon may stay a zombie for seconds, which has no environment
    { tr '\0' '\n' <"/proc/$(pid_of "$1")/environ" | grep -qxF "$MARK=$FOLDER"; } 2>/dev/null
}

launch() {  # NAME COMMAND...
    local name=$1
    shift
    if runs "$name"; then return; fi
    setsid "$@" </dev/null >>"$FOLDER/log/$name.out" 2>&1 9>&- &
    echo $! >"$FOLDER/run/$name.pid"
}

finish() {  # SIGNAL NAME: and SIGKILL if it is still there after ten seconds
    local attempt
    runs "$2" || return 0
    kill -s "$1" "$(pid_of "$2")" 2>/dev/null || true
    for attempt in {1..100}; do
        runs "$2" || return 0
        sleep 0.1
    done
    kill -s KILL "$(pid_of "$2")" 2>/dev/null || true
}

until_true() {  # COMMAND...: for a minute and a half, since a loaded machine starts daemons slowly
    local attempt
    for attempt in {1..900}; do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.1
    done
    fail "gave up waiting for: $*; see $FOLDER/log"
}

# --- what start does --------------------------------------------------------------------------------------------------

check_rights() {
    [ "$(id -u)" = 0 ] || fail "needs root"
    unshare --uts --pid --fork --mount-proc true 2>/dev/null || fail "needs CAP_SYS_ADMIN: unshare is not permitted"
    [ ${#FOLDER} -le 60 ] || fail "$FOLDER is too long a name for unix sockets"
}

install_packages() {
    local packages=() pair policy=/usr/sbin/policy-rc.d
    for pair in munged=munge slurmctld=slurmctld slurmd=slurmd sbatch=slurm-client slurmdbd=slurmdbd \
        mariadbd=mariadb-server-core; do
        command -v "${pair%=*}" >/dev/null || packages+=("${pair#*=}")
    done
    [ ${#packages[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || fail "install ${packages[*]}; this script can do so on Debian only"
    say "installing ${packages[*]}"
    if [ ! -e $policy ]; then  # the packages' own services are not to start
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >&2
}

write_slurm_conf() {
    cat >"$FOLDER/slurm.conf" <<END
ClusterName=local
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
# Loopback only, a munge of our own; cred_expire is also the delay before a requeued job may start again (121 s else).
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthInfo=socket=$FOLDER/run/munged.sock,cred_expire=10
# Job ids of an earlier cluster in this folder must not come again: results would be taken for the new job's.
FirstJobId=$(($(date +%s) % 50000000 + 1000))
MailProg=/bin/true
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool/%n
SlurmctldPidFile=$FOLDER/run/slurmctld.inner
SlurmdPidFile=$FOLDER/run/%n.inner
SlurmctldLogFile=$FOLDER/log/slurmctld.log
SlurmdLogFile=$FOLDER/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# Start jobs at once, find a lost node in seconds.
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmdTimeout=5
KillWait=2
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=2000
GresTypes=gpu
SlurmdParameters=config_overrides
# Without accounting nobody would know how a job ended.
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 1))
AccountingStoragePass=$FOLDER/run/munged.sock
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
# A job of the partition "high" preempts one of "low": SIGTERM and the user's signal, ten seconds, then a requeue.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=n[1-${#NODES[@]}] NodeAddr=127.0.0.1 Port=[$((PORT + 2))-$((PORT + 1 + ${#NODES[@]}))] CPUs=2 RealMemory=8000 Gres=gpu:2
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=2
PartitionName=low Nodes=ALL MaxTime=INFINITE PriorityTier=1 GraceTime=10
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=3
END
}

write_files() {
    mkdir -p "$FOLDER"/{run,log,db,state,spool,dev}
    chmod 700 "$FOLDER/db"
    (umask 077 && head -c 1024 /dev/urandom >"$FOLDER/munge.key")
    echo "127.0.0.1 localhost ${NODES[*]}" >"$FOLDER/hosts"
    # Fake GPUs are /dev/null under other names: only character devices also set CUDA_VISIBLE_DEVICES.
    mknod "$FOLDER/dev/gpu0" c 1 3
    mknod "$FOLDER/dev/gpu1" c 1 3
    echo "Name=gpu File=$FOLDER/dev/gpu[0-1]" >"$FOLDER/gres.conf"
    write_slurm_conf
    (umask 077 && cat >"$FOLDER/slurmdbd.conf" <<END)
AuthInfo=socket=$FOLDER/run/munged.sock
CommunicationParameters=NoInAddrAny
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((PORT + 1))
SlurmUser=root
PidFile=$FOLDER/run/slurmdbd.inner
LogFile=$FOLDER/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageUser=root
END
}

start_database() {
    local tables=/usr/share/mysql server=(
        mariadbd --no-defaults --user=root --datadir="$FOLDER/db" --innodb-buffer-pool-size=64M
        --innodb-log-file-size=4M --innodb-flush-log-at-trx-commit=0 --innodb-flush-method=nosync
        --innodb-doublewrite=0
    )
    if [ ! -d "$FOLDER/db/mysql" ]; then  # mariadb-install-db wants a program of another package
        {
            printf 'create database mysql;\nuse mysql;\n'
            echo "set @auth_root_socket='root';"
            cat $tables/mysql_system_tables.sql
            grep -v @current_hostname $tables/mysql_system_tables_data.sql
        } | "${server[@]}" --bootstrap >"$FOLDER/log/bootstrap.out" 2>&1
    fi
    launch mariadbd "${server[@]}" --socket="$MYSQL_UNIX_PORT" --pid-file="$FOLDER/run/mariadbd.inner" \
        --skip-networking --innodb-lock-wait-timeout=900
}

start_daemons() {
    start_database
    launch munged munged -F --key-file="$FOLDER/munge.key" --socket="$FOLDER/run/munged.sock" \
        --pid-file="$FOLDER/run/munged.inner" --log-file="$FOLDER/log/munged.log" --seed-file="$FOLDER/munge.seed"
    until_true test -S "$MYSQL_UNIX_PORT" -a -S "$FOLDER/run/munged.sock"
    # NoInAddrAny binds to what the host's name resolves to: each daemon gets a name that is loopback.
    launch slurmdbd unshare --uts sh -c 'hostname localhost; exec slurmdbd -D'
    until_true sacctmgr -n list cluster
    launch slurmctld unshare --uts sh -c 'hostname localhost; exec slurmctld -D'
    until_true scontrol ping
}

start_nodes() {
    local node
    for node in "${NODES[@]}"; do  # a pid name space each: killing its first process takes slurmd and all jobs along
        launch "$node" unshare --uts --pid --fork --kill-child --mount-proc sh -c \
            'hostname "$1"; mount --bind "$2/hosts" /etc/hosts; slurmd -D -N "$1" & wait' sh "$node" "$FOLDER"
    done
    until_true nodes_are_up
}

resume_drained() {  # a controller that was killed may find a job where it does not remember one, and drains the node
    local node
    for node in $(sinfo -h -N -p debug -t drain,draining -o %N | sort -u); do
        scontrol update "NodeName=$node" State=RESUME
    done
}

nodes_are_up() { resume_drained; [ "$(sinfo -h -N -p debug -o %T | grep -cE '^(idle|mixed|allocated)$')" = ${#NODES[@]} ]; }

any_runs() {
    local name
    for name in "${SERVERS[@]}" "${NODES[@]}"; do
        if runs "$name"; then return 0; fi
    done
    return 1
}

# --- commands ---------------------------------------------------------------------------------------------------------

install() {
    check_rights
    exec 9>"$FOLDER.lock"
    flock 9  # two starts at once: the second finds all up
    install_packages
}

start() {
    install
    if ! any_runs; then  # a new controller needs a new database: their job ids belong together
        if [ -e "$FOLDER" ] && [ ! -f "$FOLDER/munge.key" ]; then fail "$FOLDER is there and is not a cluster's"; fi
        rm -rf "$FOLDER"
        write_files
    fi
    start_daemons
    start_nodes
    echo "export SLURM_CONF=$SLURM_CONF"
}

stop() {
    local name
    for name in "${NODES[@]}"; do finish KILL "$name"; done  # unshare ignores SIGTERM
    for name in slurmctld slurmdbd munged mariadbd; do finish TERM "$name"; done
    rm -f "$FOLDER.lock"
}

status() {
    local name code=0
    for name in "${SERVERS[@]}" "${NODES[@]}"; do
        if runs "$name"; then echo "$name up $(pid_of "$name")"; else echo "$name down"; code=1; fi
    done
    if [ $code = 0 ]; then sinfo -N -p debug -o '%N %T %c %m %G %E'; fi
    return $code
}

case ${1-} in
install | start | stop | status) "$1" ;;
*) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac
