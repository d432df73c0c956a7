"""What `fsf --help` and the help of each command say at length."""

DESCRIPTION = """\
Feature reuse in diffusion transformers: generate videos under a reuse policy and measure what it costs and saves.

A run is a model, a policy and prompts. It is described by a small YAML file that states differences from the defaults;
any `section.key=value` after it changes one value. A run that was stopped goes on with the same command.
"""

EXAMPLES = """\
examples:
  fsf demo                                        full compute, static reuse and Foresight side by side, in minutes
  fsf run experiments/quickstart/run.yaml         one run; prints where its report.html is
  fsf run experiments/quickstart/run.yaml policy.gamma=0.25 seeds.per_prompt=2
  fsf run experiments/quickstart/run.yaml policy=static policy.interval=3 name=static3
  fsf calibrate teacache tiny-latte prompts.limit=16   measure the numbers a policy needs for a model
  fsf ablate experiments/foresight_ablation/gamma.yaml --dry-run   a grid of runs: which cells, how long
  fsf bench                                       our policies beside diffusers' and cache-dit's caches: time, FLOPs, error
  fsf report runs/a-1c5767 runs/b-9e01aa          one comparison page of several runs
  fsf compare runs/_ablations/gamma --baseline static   methods at equal compute and at equal quality, with intervals
  fsf list policies                               every policy by group; with names: options, defaults, what they do
  fsf list models | metrics | prompts
  fsf train experiments/learned/tiny-latte-l2c.yaml   train a policy for a frozen model
  fsf train experiments/tiny_models/latte.yaml    train the tiny model again

errors end with exit code 2 and one sentence; set FSF_DEBUG=1 to see where they come from.
"""


RUN = """\
The config's sections: name, model, policy, sampling, prompts, seeds, metrics, reference, tracking, engine, launch, output,
plugins. Every key, its unit and default is documented in fsframework/config/schema.py; a policy's options are in
`fsf list policies NAME`. The run directory is <output.runs_dir>/<name>-<hash of everything that changes the results>.
"""


ABLATE = """\
The file names a base run and what varies; the cells are the product:

  base: run.yaml                       a run's file, beside this one; or the run itself as a mapping
  grid: {policy.gamma: [0.25, 0.5]}    any keys of `fsf run`, those of a policy inside another included; all combinations
  zip:  {policy.warmup: [2, 4], ...}   keys that vary together; a list for several such groups
  cells:                               settings by name; each may have a grid, a zip and resources of its own
    - {name: full, policy: full}
    - {name: static, policy: static, grid: {policy.interval: [2, 3]}}
  executor: {name: local, jobs: 1}     or {name: ray, num_gpus: 1}

Every cell is checked before any runs, and becomes an ordinary run directory. The table, the report, a status per cell and
the log of a cell that failed are in <output.runs_dir>/_ablations/<name>. Ends with 0 if every cell is finished, with 1 if
not. The same command goes on, keeps finished cells and tries failed ones again.
"""


CALIBRATE = """\
Some policies decide by numbers that belong to a model: TeaCache by a polynomial, SmoothCache by a table of errors. This
command generates what such a policy's calibration asks for, keeps a record of each video, fits, and writes an artifact: one
JSON file with the numbers, the run they hold for, and where they come from. A picture and the records go beside it.

The keys are those of `fsf run`:
  prompts.set, prompts.texts, prompts.limit    what to generate; for a real model give captions like those you will use
  seeds.base, seeds.per_prompt                 clip i starts from noise of seed base + i
  sampling.num_steps, .guidance_scale, ...     sample as you will later: an artifact is for one setting
  policy.OPTION                                an option of the policy that the calibration reads
  launch.num_processes, launch.num_threads     several processes share the work; the result is the same
  output.artifact=FILE.json                    default: artifacts/<policy>-<model>-<steps>steps-<hash>.json
metrics, reference and tracking mean nothing here. With a YAML file whose policy names an `artifact`, that is written.

examples:
  fsf calibrate teacache tiny-latte prompts.limit=16
  fsf calibrate smoothcache tiny-latte sampling.num_steps=20 prompts.limit=4 output.artifact=smooth20.json
  fsf calibrate lemica opensora-1.2 prompts.set=captions.txt prompts.limit=8 launch.num_processes=4
  fsf run CONFIG.yaml "policy={name: smoothcache, artifact: smooth20.json}" sampling.num_steps=20

A calibration that was stopped goes on with the same command; one with more prompts takes over the records there are.
"""


COMPARE = """\
Runs of one method at several settings make a line of quality against compute; two methods are compared where both lines
have the same compute (--at), or the same quality (--quality; with --baseline also that of each of its settings).

  - A line holds the runs that differ only in numbers among one policy's options. Any other difference makes another line:
    a word or a switch (storage=residual), a policy inside, the engine's options, a `cells` entry of the grid. A policy swept
    in two options is one line; `--split policy.recompute_every` makes one for each of its values.
  - Each video is read off between its own two neighbouring settings; one that ends more than --reach away is left out, and
    n says so. Nothing is read further.
  - Intervals are 95 % bootstrap over prompts, all seeds of a prompt together, in pairs where methods are compared.
  - What differs between rows besides the method (threads, machine, revision, load, ...) is listed. Rows of other models,
    sampling, prompts or seeds are refused: their full-compute videos are not the same. --by gives each its own tables.

examples:
  fsf compare runs/static-* runs/foresight-* --baseline static --out comparison.md comparison.csv
  fsf compare runs/paper/_ablations/matched_quality --baseline pab --quality psnr=30 psnr=35
  fsf compare runs/paper/_ablations/resolution --by resolution --metric psnr ssim
  fsf compare runs/_ablations/gamma --by prompt --at 0.5
  fsf compare runs/a-* runs/b-* --series "ours=a-*" "theirs=b-*"
"""


TRAIN = """\
With a key `train` in the file a policy is learned for a frozen model, and an artifact is written that the ordinary policy of
that name loads:

  train: {name: l2c, interval: 2, penalty: 0.001}    the trainer and its options (l2c, harmonica, ...)
  model: tiny-latte                                  frozen; what it learns does not touch it
  sampling: {num_steps: 30}                          as the policy will be used: gates are for one sampler and its steps
  prompts: digits-train                              captions to learn from, seeds.per_prompt clips of each
  validation: {every: 10, patience: 3}               early stopping on clips that are not learned from
  num_iterations, learning_rate, batch_clips, seed   the optimizer; precision: bf16-mixed; num_processes share a batch
  output_dir: runs/train/NAME                        checkpoint, metrics.jsonl, W&B's files
  artifact: FILE.json                                default: artifact.json in output_dir; its picture goes beside it

Every key, its unit and default is documented in fsframework/train/learned_config.py. A training that was stopped, at any
moment, goes on with the same command and ends with the same numbers. Then evaluate it like any policy:

  fsf run CONFIG.yaml "policy={name: l2c, artifact: FILE.json, budget: 0.5}" sampling.num_steps=30

Without the key the file is for a tiny model, such as experiments/tiny_models/latte.yaml.
"""


BENCH = """\
Without a MODEL three sections are measured: `engine`, what a visit of a block and a forward cost; `model`, policies and peers
on a trained tiny model; `wide`, the same on a random transformer 1024 wide, where saved compute must become saved time. With a
MODEL only that. All methods take turns in each round, in one process. Writes <out>/bench.json, bench.md and a picture per
section; Ctrl-C leaves what was measured until then. Every key is documented in fsframework/run/bench_config.py:

  rounds=5 sections=[wide] policies=[full,{name: static, interval: 3}] peers=false num_threads=1 out=runs/bench
  num_steps, height, width, num_frames, prompts, seed, device, dtype      how videos of MODEL are sampled
  wide_hidden, wide_blocks, wide_steps, wide_frames                       size of the random transformer

examples:
  fsf bench
  fsf bench cogvideox-2b device=cuda rounds=9
  fsf bench sections=[engine] rounds=15
"""
