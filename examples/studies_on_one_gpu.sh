#!/usr/bin/env bash
# All studies of docs/, from recordings to reports, side by side on one GPU and 16 cores. Not run to its end yet: the GPU is what
# they wait for, and by the speed of its parts on an H200 all take about half an hour. What is finished is not made again, so it
# can be killed. NVIDIA's multi-process service (nvidia-cuda-mps-control -d, before) lets processes compute at the same time.
#
#   bash examples/studies_on_one_gpu.sh                  everything
#   bash examples/studies_on_one_gpu.sh synther worlds   parts: synther gap imagination imitation worlds
#
# DREAMLOOM=echo tells what would run. Logs go to runs/logs, seconds of each command to runs/logs/times.
set -u
cd "$(dirname "$0")/.."
read -ra DREAMLOOM <<< "${DREAMLOOM:-uv run dreamloom}"
DEVICE=${DEVICE:-cuda} BUDGET=${BUDGET:-160} LOGS=runs/logs  # BUDGET: seconds that each world of the table is trained for
export OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184  # big buffers go back at once
mkdir -p $LOGS data reports

dl() { "${DREAMLOOM[@]}" "$@"; }
share() { printf '00:00:%02d:%02d' $((BUDGET * $1 / 6000)) $((BUDGET * $1 / 100 % 60)); }  # a percentage of the budget

job() { # name command...: once; its log, its seconds, and NAME.ok or NAME.failed
  local name=$1 start=$SECONDS
  shift
  [ -e "$LOGS/$name.ok" ] && return
  rm -f "$LOGS/$name.failed"
  if "$@" > "$LOGS/$name.log" 2>&1; then touch "$LOGS/$name.ok"; else touch "$LOGS/$name.failed"; fi
  echo "$name $((SECONDS - start)) s$([ -e "$LOGS/$name.ok" ] || echo ", FAILED: see $LOGS/$name.log")" | tee -a $LOGS/times
  [ -e "$LOGS/$name.ok" ]
}

together() { # name processes command...: the same command in several processes, which share its cells
  local name=$1 processes=$2 i
  shift 2
  for i in $(seq "$processes"); do job "$name.$i" "$@" & done
  wait
}

after() { # jobs...: waits for their ends
  local name
  for name in "$@"; do until [ -e "$LOGS/$name.ok" ] || [ -e "$LOGS/$name.failed" ]; do sleep 0.5; done; done
}

# Agents that learn from scratch, leaving ten of their stages behind.
learn() { # name game words...
  local name=$1 game=$2
  shift 2
  job "learn_$name" dl collect procgen --game "$game" --policy ppo --network impala --device "$DEVICE" --num-threads 2 --seed 5 \
    "$@" --out "data/$name.learning.hdf5"
}
learn_game() { learn "$1" "$1" --levels 0:1000 --steps 249600 --train-steps 1248000 --segment 390; }

synther() {
  job cheetah dl collect mujoco --env HalfCheetah-v5 --steps 200000 --updates-per-step 0.25 --learning-rate 0.001 --out data/cheetah.hdf5 &
  job hopper dl collect mujoco --env Hopper-v5 --steps 100000 --updates-per-step 1 --learning-rate 0.001 --width 128 --batch-size 128 --learning-starts 10000 --out data/hopper.hdf5 &
  wait
  job cheetah_top dl data convert data/cheetah.hdf5 --top-return 0.5 --to data/cheetah_top.hdf5
  job hopper_top dl data convert data/hopper.hdf5 --top-return 0.25 --to data/hopper_top.hdf5
  together synther 6 dl eval study -c recipes/studies/synther_gpu.yaml --out reports/synther_gpu
  together tenth 6 dl eval study -c recipes/studies/synther_tenth.yaml --out reports/synther_tenth
}

solved() { # game: a recording of what a search finds in its levels
  job "solve_$1" dl collect procgen --game "$1" --levels 0:200 --policy search --steps 48000 --segment 500 --num-threads 1 --out "data/$1.hdf5"
}
gap() {
  local chosen
  solved miner & solved jumper & solved coinrun & solved maze &
  after solve_coinrun solve_maze
  together tuning 8 dl eval study -c recipes/studies/procgen_tuning.yaml --out reports/procgen_tuning
  chosen=$(sed -n 's/^best: //p' <<< "$(best)")
  after solve_jumper solve_miner
  together gap 10 dl eval study -c recipes/studies/procgen_gap.yaml --pixels.augment "$chosen" --out reports/procgen_gap
}
best() { # of the tuned augmentations, by the rule in the recipe's header
  python3 -c "
import json
arms = json.load(open('reports/procgen_tuning/study.json'))['overall']['bc']
del arms['baseline']
print('best:', max(arms, key=lambda name: arms[name]['gaps']['test']['mean']))" 2> /dev/null || echo "best: cutout"
}

last() { ls -t "runs/$1/$2"/version_*/checkpoints/last.ckpt 2> /dev/null | head -1; }  # game, recipe: the newest checkpoint
imagined_in() { # game: a world of its training levels, rows that are imagined in it, and whether it ranks agents
  local game=$1 settings
  after "learn_$game"
  job "mixed_$game" dl collect procgen --game "$game" --levels 0:200 --policy ppo --agent "data/$game.learning.agents" --quality mixed --device "$DEVICE" \
    --steps 64000 --num-envs 80 --segment 400 --num-threads 1 --out "data/${game}_mixed.hdf5"
  settings="--data.path data/${game}_mixed.hdf5 --trainer.default_root_dir runs/$game --trainer.enable_progress_bar false"
  job "world_$game" dl fit -c recipes/coinrun/diffusion_world.yaml $settings --data.stride 1 --data.residence device --data.batch_size 64 \
    --trainer.max_steps=-1 --trainer.max_time 00:00:03:20 --trainer.benchmark true --model.graphs true &
  job "heads_$game" dl fit -c recipes/coinrun/outcomes.yaml $settings --data.stride 1 --data.batch_size 256 --data.residence device \
    --model.model.init_args.actions 15 --trainer.max_steps=-1 --trainer.max_time 00:00:00:30
  job "policy_$game" dl fit -c recipes/pixels/coinrun/cql.yaml $settings --model.model.init_args.seeds 3 --trainer.max_steps 150 \
    --model.model.init_args.vision.init_args.encoder dreamloom.nn.encoders.Nature
  wait
  job "rows_$game" dl synthesize "$(last "$game" coinrun/diffusion_world)" --policy "$(last "$game" pixels/coinrun/cql)" \
    --starts "data/${game}_mixed.hdf5" --outcomes "$(last "$game" coinrun/outcomes)" --n 60000 --horizon 10 --batch-size 512 --out "data/imagined_$game"
  job "rank_$game" dl eval imagination "$(last "$game" coinrun/diffusion_world)" --outcomes "$(last "$game" coinrun/outcomes)" \
    --agents "data/$game.learning.agents" --levels 0:200 --out "reports/imagination_$game"
}
imagination() {
  imagined_in coinrun & imagined_in fruitbot &
  after rows_coinrun rows_fruitbot
  together imagination 4 dl eval study -c recipes/studies/imagination.yaml --out reports/imagination
}

imitation() {
  learn coinrun_plain coinrun --levels 0:100 --restrict-themes --no-use-backgrounds --steps 160000 --train-steps 480000 --segment 250
  job expert dl collect procgen --game coinrun --levels 0:100 --policy ppo --agent data/coinrun_plain.learning.agents --quality expert --device "$DEVICE" \
    --steps 50000 --restrict-themes --no-use-backgrounds --num-threads 1 --out data/coinrun_expert.hdf5
  together imitation 3 dl eval imitation -c recipes/studies/imitation.yaml --out reports/imitation
}

# Three kinds of worlds of one recording, each trained for equally long.
fit_part() { # recipe percent words...
  local recipe=$1 time
  time=$(share "$2")
  shift 2
  job "fit_$recipe" dl fit -c "recipes/coinrun/$recipe.yaml" --data.path data/worlds.hdf5 --data.residence device --data.batch_size 64 \
    --trainer.default_root_dir runs/worlds --trainer.max_steps=-1 --trainer.max_time "$time" --trainer.enable_progress_bar false "$@"
}
bundled() { # name parts...
  local name=$1
  shift
  after fit_outcomes
  job "bundle_$name" dl bundle "$@" --outcomes runs/worlds/coinrun/outcomes --data data/worlds_heldout.hdf5 --stride 2 --name "$name" --out "worlds/$name"
}
measured() { job "eval_$1" dl eval world "worlds/$1" --data data/worlds_heldout.hdf5 --out "reports/$1"; }
genie() {
  local runs=runs/worlds/coinrun sdpa="--model.model.init_args.backend sdpa"
  fit_part tokenizer 38 $sdpa --model.graphs true & fit_part latent_actions 15 $sdpa &
  wait
  fit_part dynamics 47 $sdpa --model.graphs true --model.tokenizer $runs/tokenizer --model.latent_actions $runs/latent_actions
  bundled genie --tokenizer $runs/tokenizer --latent-actions $runs/latent_actions --dynamics $runs/dynamics
}
diffusion() {
  fit_part diffusion_world 100 --model.graphs true --trainer.benchmark true
  bundled diffusion runs/worlds/coinrun/diffusion_world
  measured diffusion
}
forcing() {
  local sdpa="--model.model.init_args.backend sdpa --model.graphs true"
  fit_part autoencoder 35 $sdpa
  fit_part forcing 65 $sdpa --model.autoencoder runs/worlds/coinrun/autoencoder
  bundled forcing runs/worlds/coinrun/forcing
  measured forcing
}
worlds() {
  local look="--game coinrun --policy stroll:0.8,scripted:0.2 --restrict-themes --no-use-backgrounds --num-threads 4"
  job record_worlds dl collect procgen $look --steps 250000 --levels 0:10000 --out data/worlds.hdf5
  job record_heldout dl collect procgen $look --steps 20000 --levels 10000:11000 --seed 1 --out data/worlds_heldout.hdf5
  fit_part outcomes 25 & genie & diffusion & forcing &
  wait
  job table dl eval world worlds/genie --data data/worlds_heldout.hdf5 --beside "[reports/diffusion, reports/forcing]" --out reports/genie
}

parts=${*:-synther gap imagination imitation worlds}
case " $parts " in *" imagination "*) learn_game coinrun & learn_game fruitbot & ;; esac
for part in $parts; do "$part" & done
wait
