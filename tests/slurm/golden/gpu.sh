#!/bin/bash

# Parameters
#SBATCH --account=my_project
#SBATCH --array=0-2%2
#SBATCH --constraint=a100
#SBATCH --cpus-per-task=8
#SBATCH --dependency=afterany:11:12
#SBATCH --gpus-per-node=1
#SBATCH --job-name=sub.0
#SBATCH --mem=32GB
#SBATCH --nodes=1
#SBATCH --open-mode=append
#SBATCH --output=/results/slurm/sub/0/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=240
#SBATCH --wckey=submitit

# setup
module load cuda

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /results/slurm/sub/0/%A_%a_%t_log.out --cpus-per-task 8 python -P -u -m submitit.core._submit /results/slurm/sub/0

#!/bin/bash

# Parameters
#SBATCH --account=my_project
#SBATCH --cpus-per-task=1
#SBATCH --dependency=afterany:13
#SBATCH --job-name=sub.report
#SBATCH --nodes=1
#SBATCH --open-mode=append
#SBATCH --output=/results/slurm/sub/report/%j_0_log.out
#SBATCH --partition=cpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=30
#SBATCH --wckey=submitit

# setup
module load cuda

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /results/slurm/sub/report/%j_%t_log.out --cpus-per-task 1 python -P -u -m submitit.core._submit /results/slurm/sub/report
