"""The user's mistakes: one line that says what is wrong and what to do, exit code 2, no traceback, nothing written."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from good_files import SMALL, TINY
from oracle import judge, run
from perturblab import data
from perturblab.models import NETS, options_read
from perturblab.records.config import NET_OPTIONS
from strategies import garbled, search

# One mistake a line: the command line => a pattern for its error. Words in capitals stand for what is below.
WORDS = {
    "TINY": TINY,
    "SMALL": f"{SMALL} --out new",
    "LENET": "--dataset-train digits --net-type lenet --nfilters 2 --nthreads 1 --quiet",
    "PERTURB": "--dataset-train digits --net-type perturb_resnet18 --nfilters 4 --quiet",
    "COLOUR": "--net-type perturb_resnet18 --nfilters 4 --first_filter_size 0",
    "LONG": "x" * 300,
    "DEEP": "x/" * 3000 + "y",
}

OPTIONS = r"""
train --nepoch 5 => unknown option --nepoch; did you mean --nepochs\?
train --nfilter=4 => unknown option --nfilter; did you mean --nfilters\?
train --batchsize 4 => unknown option --batchsize; did you mean --batch[-_]size\?
train --learning-rat 1 => unknown option --learning-rat; did you mean --learning-rate\?
train --first-filtersize 3 => did you mean --first[-_]filter[-_]size\?
train --unique-mask => did you mean --unique[-_]masks\?
train --no-nepochs => unknown option --no-nepochs; did you mean --nepochs\?
train --Nepochs 5 => unknown option --Nepochs; did you mean --nepochs\?
describe --image-sise 3 => unknown option --image-sise; did you mean --image[-_]size\?
evaluate run --jso => unknown option --jso; did you mean --json\?
models --jsn => unknown option --jsn; did you mean --json\?
report --controll x => unknown option --controll; did you mean --control\?
train --zzzzzzzzzz => unknown option --zzzzzzzzzz; see perturblab train --help
train --ünïcödé 1 => unknown option --ünïcödé
train -z => unknown option -z
--verbose => unknown option --verbose
evaluate run --nepochs 3 => unknown option --nepochs
report --audit => unknown option --audit
 => no command given; see perturblab --help
bogus => invalid choice: 'bogus'.*train
TRAIN => invalid choice: 'TRAIN'
'' => invalid choice: ''
train train => 'train'.*perturblab train --help
train models => 'models'.*belongs to no option
models extra => 'extra'.*perturblab models --help
evaluate run run => 'run'.*belongs to no option
evaluate => required: RUN
train --nepochs => --nepochs.*expected one argument
train --nepochs --audit => --nepochs.*expected one argument
report --control => --control.*expected one argument
train --audit=yes => --audit.*'yes'
train --no-unique_masks=1 => --unique-masks.*'1'
models --json=1 => --json.*'1'
- => invalid choice: '-'
-- => unknown option --
models -- => unknown option --
attack => required: RUN
show => required: ID
run --seeds => --seeds.*expected one argument
report a b => 'b'.*belongs to no option
train @file => '@file'.*belongs to no option
export run => --onnx FILE or --pretrained DIR
export run --onnx net.onnx --push user/net => --push.*give --pretrained
report run --attacks --groups => --attacks and --groups.*choose one
report run --control bogus => --control bogus.*perturblab report --help
report run --into run => --into run.*perturblab report --help
run K4 --cpus 2 --quiet => --cpus given without --on.*drop it
"""

VALUES = r"""
train --nepochs 3.5 => --nepochs got '3\.5'.*integer
train --nepochs 0 => --nepochs got '0'.*1
train --nepochs -1 => --nepochs got '-1'.*1
train --nepochs nan => --nepochs got 'nan'.*integer
train --nepochs inf => --nepochs got 'inf'.*integer
train --nepochs 1e3 => --nepochs got '1e3'.*integer
train --nepochs '' => --nepochs got ''.*integer
train --nepochs zwölf => --nepochs got 'zwölf'.*integer
train --nepochs ٣٫٥ => --nepochs got '٣٫٥'.*integer
train --batch-size 0 => --batch-size got '0'.*1
train --batch_size 10.5 => --batch-size got '10\.5'.*integer
train --batch-size 16,16 => --batch-size got '16,16'.*integer
train --seed 1.5 => --manual-seed got '1\.5'.*integer
train --manual-seed -1 => --manual-seed got '-1'.*0
train --nfilters 0 => --nfilters got '0'.*1
train --nfilters 64.0001 => --nfilters got '64\.0001'.*integer
train --net-type perturb_resnet18 --nmasks 0 => --nmasks got '0'.*1
train --net-type perturb_resnet18 --nmasks 1.5 => --nmasks got '1\.5'.*integer
train --nthreads 0 => --nthreads got '0'.*1
train --train-size 0 => --train-size got '0'.*1
train --train-size -5 => --train-size got '-5'.*1
train --val-size -1 => --val-size got '-1'.*0
train --val-size 0.1 => --val-size got '0\.1'.*integer
train --net-type lbcnet --depth 0 => --depth got '0'.*1
train --lr nan => --learning-rate got 'nan'.*finite
train --learning-rate inf => --learning-rate got 'inf'.*finite
train --learning_rate 1e999 => --learning-rate got '1e999'.*finite
train --lr 0 => --learning-rate got '0'.*greater than 0
train --lr=-1e-3 => --learning-rate got '-1e-3'.*greater than 0
train --lr 1e-400 => --learning-rate got '1e-400'.*greater than 0
train --lr '' => --learning-rate got ''.*number
train --lr 0,001 => --learning-rate got '0,001'.*number
train --net-type perturb_resnet18 --level nan => --level got 'nan'.*finite
train --net-type perturb_resnet18 --level=-inf => --level got '-inf'.*finite
train --net-type perturb_resnet18 --scale_noise nan => --scale-noise got 'nan'.*finite
train --momentum 1 => --momentum got '1'.*less than 1
train --momentum -0.1 => --momentum got '-0\.1'.*0
train --weight-decay -1 => --weight-decay got '-1'.*0
train --weight-decay nan => --weight-decay got 'nan'.*finite
train --adam-beta1 1 => --adam-beta1 got '1'.*less than 1
train --adam-beta2 1.5 => --adam-beta2 got '1\.5'.*less than 1
train --dropout 1.01 --net-type lenet => --dropout got '1\.01'.*1
train --dropout nan --net-type lenet => --dropout got 'nan'.*finite
train --net-type lbcnet --sparsity 0 => --sparsity got '0'.*greater than 0
train --net-type lbcnet --sparsity 2 => --sparsity got '2'.*1
train --code xx => --code got 'xx'.*'or', 'kl' or 'up'
train --code '' => --code got ''.*'or', 'kl' or 'up'
train --optim-method adam => --optim-method got 'adam'.*'SGD', 'Adam'
train --optimizer-schedule step => --optimizer-schedule got 'step'.*'cosine'
train --act swish => --act got 'swish'.*'relu'
train --pool-type min => --pool-type got 'min'.*'max', 'avg', 'stride' or 'overlap'
train --noise-type laplace => --noise-type got 'laplace'.*'uniform' or 'normal'
train --redraw-masks sometimes => --redraw-masks got 'sometimes'.*'never'
train --first-masks -1 => --first-masks got '-1'.*0
train --operator roll => --operator got 'roll'.*'shift'
train --anchors ternary => --anchors got 'ternary'.*'binary'
train --filter_size 9 => --filter-size got '?9'?.*0, 1, 3, 5 or 7
train --filter_size 3.5 => --filter-size got '3\.5'.*0, 1, 3, 5 or 7
train --filter_size -1 => --filter-size got '-1'.*0, 1, 3, 5 or 7
train --first-filter-size 2 => --first-filter-size got '?2'?.*0, 1, 3, 5 or 7
train --learning-rate-decay 0.1 => --learning-rate-decay is read by none of the published codes
describe --learning_rate_decay 0.1 => --learning-rate-decay is read by none
describe --image-size 0 => --image-size got '0'.*at least 1
describe --image-size 8,8,8 => --image-size got '8,8,8'.*N,N
describe --image-size 3.5 => --image-size got '3\.5'
describe --image_size '' => --image-size got ''
describe --channels -3 => --channels got '-3'.*at least 1
describe --nclasses 1e3 => --nclasses got '1e3'
describe --nclasses ² => --nclasses got '²'
evaluate run --batch-size 0 => --batch-size got '0'.*at least 1
evaluate run --batch_size 3.5 => --batch-size got '3\.5'
train --nepochs= => --nepochs got ''.*integer
train --net-type lbcnet --depth 2147483647 => --depth got '2147483647'.*1000
describe --net-type bottleneck_resnet --blocks 2147483647 => --blocks got '2147483647'.*1000
attack run --eps 8/0 => --eps got '8/0'.*8/255
attack run --eps '' => --eps got ''.*8/255
attack run --subset 0 => --subset got '0'.*1
attack run --iterations 0 => --iterations got '0'.*at least 1
attack run --attacks '' => --attacks got ''; choose among fgsm
attack run --attacks bogus => --attacks got 'bogus'; choose among fgsm
attack run --attacks transfer-bogus --source mixed => --attacks got 'transfer-bogus'
run K4 --seeds 0 => --seeds got '0'.*at least 1
run K4 --jobs 0 => --jobs got '0'.*at least 1
run --preset bogus => --preset got 'bogus'; choose one of quick
run K4 --on bogus --quiet => --on got 'bogus'; expected ray
run K4 --on ray --gpus 1.5 --quiet => --gpus got '1\.5'; expected
list --tag bogus => 'bogus'; choose among attack
list --tag pnn,bogus => 'bogus'; choose among attack
list --tag '' => --tag got ''
report run --markdown --tag bogus => 'bogus'; choose among attack
show K5555 => 'K5555'; see perturblab list
show '' => ''; see perturblab list
run K5555 => 'K5555'; see perturblab list
run P1 --preset quick --dry-run --quiet => P1 rests on no run; see perturblab show P1
run H1 --preset quick --dry-run --quiet => H1 cannot be run
"""

COMBINATIONS = r"""
train --net-type resnet => no net is called 'resnet'; did you mean resnet\d+\?
train --net-type Resnet18 => no net is called 'Resnet18'; did you mean resnet18\?
train --net-type 'résnet18 ' => no net is called 'résnet18 '; did you mean resnet18\?
describe --net-type ../resnet18 => no net is called
train --first-filter-size 3 => --first-filter-size given, but resnet18 does not read it.*--net-type
train --no-unique_masks => --unique-masks given, but resnet18
train --net-type noiseresnet18 --nmasks 2 --mix_maps => --nmasks, --mix-maps given, but noiseresnet18
train --net-type perturb_resnet18 --sparsity 0.5 => --sparsity given, but perturb_resnet18
train --net-type lbcnet --level 0.1 => --level given, but lbcnet
train --dataset-train digits --net-type noiseresnet18 --first_filter_size 0 => first_filter_size is 0.* 3 or 7
train --dataset-train digits --net-type noiseresnet18 --first_filter_size 1 => first_filter_size is 1.* 3 or 7
train --dataset-train digits --net-type noiseresnet18 --first_filter_size 5 => first_filter_size is 5.* 3 or 7
describe --net-type noiseresnet18 --first_filter_size 0 => first_filter_size is 0.* 3 or 7
describe --net-type noiseresnet18 --first_filter_size 1 => first_filter_size is 1.* 3 or 7
describe --net-type noiseresnet18 --first_filter_size 5 => first_filter_size is 5.* 3 or 7
describe COLOUR --nmasks 2 => nmasks 2 groups .* 4 filters .* 3 channels; use a multiple of 3, or nmasks 1
train COLOUR --nmasks 2 --dataset-train pictures --quiet => 4 filters are no multiple of 3 channels
describe --code up --net-type noiseresnet50 --first_filter_size 5 => first_filter_size is 5
train PERTURB --train_masks --redraw_masks train => cannot be both trained and redrawn.*drop one
describe --net-type lenet --train_masks --redraw-masks always => cannot be both trained and redrawn
describe --net-type noiseresnet18 --operator shift --level 0.1 => shift has no masks, and level is 0\.1; drop
train --net-type noiseresnet18 --operator anchors --untied_bias => anchors has no masks, and untied_bias is True
describe --net-type perturb_resnet18 --operator shift => --operator given, but perturb_resnet18 does not read
describe --net-type perturb_resnet18 --first-masks 5 --first_filter_size 3 => a first layer of 3x3 has none; drop
describe --net-type perturb_resnet18 --first-sigmoid --use_act => first_sigmoid .* and use_act another; drop one
describe --net-type lenet --first-mix => --first-mix given, but lenet does not read it
describe --net-type lbcnet --image-size 4 => needs at least 5x5
train LENET --batch-size 1 => --batch-size 1 leaves a batch of 1 of 1200
train LENET --train-size 21 --batch-size 10 => --batch-size 10 leaves a batch of 1 of 21.*another batch size
train LENET --code or --batch-size 5000 => --batch-size 5000 is larger than the 1200 training images
train --device bogus => --device got 'bogus'.*use cpu
train --device '' => --device got ''
train --device cpu:x => --device got 'cpu:x'
train --device mps:0 => --device got 'mps:0'
train --device cuda:0 => --device got 'cuda:\d+', which is not to be had here
train --resume run --out new => --resume goes on in the run's own folder; drop --out
describe COLOUR --train_masks --mask-memory bf16 => mask_memory is 'bf16'; drop one
describe COLOUR --mask-memory seed --redraw_masks always => drop mask_memory seed or redraw_masks
describe --net-type bottleneck_resnet --reading A --nfilters 3 => nfilters is 3; reading A needs a multiple of 4
describe --net-type batchout_mnist --image-size 4 --padding 0 => at least 14x14; use padding 2
train TINY --batch-size 1 --out new => --batch-size 1 leaves a batch of 1 of 20
train TINY --batch-size 5000 --code or --out new => --batch-size 5000 is larger than the 20 training images
train TINY --batchout-eta 0.1 --out new => --batchout-eta given, but --defence none does not read it
train TINY --defence-eps 0.1 --out new => --defence-eps given, but --defence none does not read it
train TINY --defence fgsm --batchout-k 3 --out new => --batchout-k given, but --defence fgsm
train TINY --defence fgsm --defence-steps 3 --out new => --defence-steps given, but --defence fgsm
train TINY --defence batchout --defence-eps 0.1 --out new => --defence-eps given, but --defence batchout
train TINY --defence batchout --batchout-at nowhere --out new => --batchout: .*'nowhere'; there are 0, 0\.0
train TINY --defence batchout --batchout-at all-after:nowhere --out new => --batchout: 'all-after:nowhere'.*; there are
train TINY --defence batchout --batchout-at '' --out new => --batchout-at got ''
train TINY --defence batchout --batchout-eta '1;2;3;4;5;6;7' --out new => --batchout: eta got 7 magnitudes for 4 places
train TINY --defence batchout --batchout-eta U[1,0] --out new => --batchout: eta is uniform over \(1\.0, 0\.0\)
train TINY --defence batchout --batchout-eta 0.3:0.6 --out new => --batchout: eta has the probabilities \(0\.6,\)
train TINY --defence batchout --batchout-eta nan --out new => --batchout: eta has the values \(nan,\)
train TINY --defence batchout --batchout-eta 0.1,0.2 --out new => --batchout: eta got '0\.1,0\.2'; expected
train TINY --defence batchout --batchout-k 1.5 --out new => --batchout-k got '1\.5'; expected a count
train TINY --defence batchout --batchout-partners no-self --batch-size 1 --out new => --batch-size 1 leaves a batch
train TINY --defence fgsm-half --defence-mode train --batch-size 2 --out new => --batch-size 2 leaves a batch of 2
train TINY --defence pgd --defence-eps 8/0 --out new => --defence-eps got '8/0'; expected
train LENET --train-size 20 --val-size 19 --batch-size 10 => --batch-size 10 leaves a batch of 1 of 1
train --dataset-train digits --net-type batchout_mnist --train-only norms --quiet => --train-only norms given.*drop it
attack run --attacks transfer-fgsm => --source; give the run
attack run --attacks transfer-fgsm --source colour --eps 0.1 --no-checks --quiet => --source colour.*choose another
attack run --attacks transfer-fgsm --source run --eps 0.1 --no-checks --quiet => --source run has the weights
attack run --attacks fgsm-unclipped --norm l2 --eps 1 --subset 4 --quiet => --check-subset and --subset.*at least 10
attack run --attacks fgsm-normalised --norm l2 --eps 1 --subset 4 => --norm l2 is not known to fgsm-normalised
attack run --batchout-in-eval => --batchout-in-eval given.*without BatchOut; drop it
attack byclass --batchout-in-eval --quiet => --batchout-in-eval given.*by class.*; drop it
attack run --inference-batchout 2 --quiet => --inference-batchout given.*without BatchOut; drop it
attack run --inference-batchout 2 --batchout-in-eval => --batchout-in-eval and --inference-batchout given.*; drop one
"""

DATA = r"""
train --dataset-train nope => 'nope' is neither a folder nor a data set.*CIFAR10
train --dataset-train CIFAR-11 => did you mean CIFAR10\?
train --dataset-train /nope/cifar => there is no folder /nope/cifar; give an existing folder
train --dataset-train file => 'file' is neither a folder nor a data set
train --dataset-train empty => empty holds no data set; expected
train --dataset-train nonsense => nonsense holds no data set; expected
train --dataset-train one_class --quiet => one_class has the one class 'cat'; expected at least 2
train --dataset-train damaged --quiet => 1\.png is no readable image.*replace or remove
train --dataset-train pictures --dataset-test larger --quiet => test images of 3x9x9, expected 3x8x8
train --dataset-train pictures --dataset-test others --quiet => other classes in test than in train
train --dataset-train pictures --dataset-test digits --quiet => classes in test
train LENET --dataset-test nope => 'nope' is neither a folder nor a data set
train --quiet => CIFAR10 is neither under .* nor in the cache.*--dataroot
train --quiet --dataset-train MNIST --dataroot nowhere => MNIST is neither under .*nowhere nor in the cache
train LENET --classes 0,99 => digits has no class '99'; its classes are 0, 1, 2
train LENET --classes 0,0 => classes are '0,0'; expected at least 2 different
train LENET --classes 3 => classes are '3'; expected at least 2
train LENET --classes 1,2,1 => classes are '1,2,1'.*different
train LENET --classes 0,,1 => no class ''
train LENET --classes '' => no class ''
train LENET --classes null,eins => no class 'null'
train LENET --train-size 1201 => 1201 images.*1 to 1200
train LENET --train-size 1000000000000000000000000000000 => --train-size got '10{30}'.*less than 2147483648
train LENET --val-size 1200 => 1200 images are to be held out; expected 1 to 1199
train LENET --train-size 10 --val-size 10 => 10 images are to be held out; expected 1 to 9
train --dataset-train CIFAR10 => CIFAR10 is neither under .* nor in the cache.*--dataroot
train --dataset-train ./nowhere => there is no folder ./nowhere
train --dataset-train several SMALL => several holds several data sets \(.*cifar10, .*raw\); give one
train --dataset-train CIFAR10 --dataroot several SMALL => several/cifar10 holds 2 classes.*--dataroot
train --dataset-train CIFAR10 --dataroot wrong SMALL => wrong/cifar10 holds 2 classes of 3x8x8.*--dataroot
train --dataset-train MNIST --dataroot copies SMALL => copies holds several copies of MNIST.*mnist-b\); give the path
train --dataset-train MNIST --dataroot twofold SMALL => twofold/mnist holds several data sets
train --dataset-train pictures/train SMALL => pictures/train holds no data set; expected
train --dataset-train incomplete SMALL => incomplete lacks train-labels-idx1-ubyte, t10k-images-idx3-ubyte; add them
train LENET --classes ,, => digits has no class ''
"""

FOLDERS = r"""
train TINY --out run => --out run exists and is never overwritten; choose another.*--resume run
train TINY --out nonsense => --out nonsense exists and is never overwritten
train TINY --out file => --out file exists and is never overwritten
train TINY --out . => --out \. exists and is never overwritten
evaluate nowhere => nowhere holds no checkpoint\.pt; give the folder of a run
evaluate empty => empty holds no checkpoint\.pt; give the folder of a run
evaluate file => file holds no checkpoint\.pt; give the folder of a run
evaluate nonsense => nonsense holds no checkpoint\.pt; give the folder of a run
evaluate run/record.json => run/record.json holds no checkpoint\.pt; give the folder of a run
train --resume nowhere => nowhere holds no checkpoint\.pt; give the folder of a run
train --resume empty => empty holds no checkpoint\.pt; give the folder of a run
train --resume file => file holds no checkpoint\.pt; give the folder of a run
train --resume nonsense => nonsense holds no checkpoint\.pt; give the folder of a run
train --resume run/record.json => run/record.json holds no checkpoint\.pt; give the folder of a run
train --resume run --lr 1 => --learning-rate given, and run was started with another value; drop it
train --resume run --seed 5 --net-type resnet18 => --manual-seed, --net-type given, and run was started with
train --resume run --classes 0,1 => --classes given, and run was started with
train --resume run --nepochs 0 => --nepochs got '0'
report nowhere => nowhere is no folder
report file => file is no folder
report run --groups --control nothing => control is 'nothing', expected one of 'lenet, 2 filters
report run --markdown --into nowhere => nowhere cannot be read
report run --markdown --into file => results:begin
evaluate /dev/null => /dev/null holds no checkpoint\.pt
evaluate stopped => stopped holds no weights\.safetensors; train the run first
attack stopped --attacks fgsm --eps 0.1 --quiet => stopped holds no weights\.safetensors
attack nowhere => nowhere holds no checkpoint\.pt; give
attack run --source nowhere --attacks transfer-fgsm => nowhere holds no checkpoint\.pt
train --resume cosine --nepochs 5 --quiet => --nepochs cannot change: the cosine schedule
train --resume begun --nepochs 1 --quiet => --nepochs got 1, and epoch 2 has begun; expected at least 2
train --resume run --device cuda:99 --quiet => --device got 'cuda:99'
train --config nowhere => --config nowhere is no file; give a YAML file
train --config '' => --config
train --out run/record.json/x => --out run/record\.json/x cannot be made
train TINY --out /proc/x => /proc/x cannot be used
run --preset quick K4 --results /proc/nothing --quiet => /proc/nothing cannot be used
run K4 --results run/record.json => --results got run/record\.json, which is a file; give a folder
report run/record.json => run/record\.json is no folder
report failed => failed/failed\.json cannot be read as a failure.*delete it
report pictures --attacks => say perturblab attack RUN first
report run --markdown --into without.md => --into without\.md.* 0 lines.*results:begin
report run --markdown --into one.md => --into one\.md.* 0 lines.*results:end
report run --markdown --into swapped.md => --into swapped\.md.*swap the two
report run --markdown --into twice.md => --into twice\.md.* 2 lines.*results:begin
export nowhere --pretrained new => nowhere/record\.json cannot be read
export run --onnx name => --onnx got name; expected a name that ends in \.onnx
export run --onnx run/weights.safetensors => --onnx got run/weights\.safetensors; expected
export run --onnx there.onnx => there\.onnx exists and is never overwritten
export run --pretrained mixed => mixed exists and is never overwritten
export run --pretrained mixed --push user/net --quiet => mixed exists and does not hold the net of run
export redrawn --onnx new.onnx --quiet => train with fixed masks
"""

HARD = r"""
train --net-type '' => --net-type got ''|no net is called ''
train --dataset-train '' => --dataset-train got ''|'' is neither a folder nor a data set
train TINY --out '' => --out got ''
train TINY --resume '' => --resume got ''|holds no checkpoint
train TINY --out file/new => file
train --dataset-train ~nobody-here/x => there is no folder ~nobody-here/x
train --quiet --dataset-train MNIST --dataroot '~nobody-here' => MNIST is neither under .*~nobody-here nor
describe --quiet --image-size 0 => --image-size got '0'
train LENET --device meta => --device got 'meta'
train --nthreads 3000000000 => --nthreads got '3000000000'
train --nfilters 99999999999999999999 => --nfilters got '9{20}'
describe --nfilters 1000000000000 => --nfilters got '10{12}'
describe --net-type lenet --nmasks 99999999999999999999 => --nmasks got '9{20}'
describe --nfilters 2000000000 => --nfilters|memory
train COLOUR --nfilters 2000000000 --dataset-train pictures --quiet => --nfilters|memory
describe --nclasses 99999999999999999999 => --nclasses got '9{20}'
describe --channels 99999999999999999999 => --channels got '9{20}'
describe --image-size 10000000000 => --image-size got '10{10}'
evaluate run --audit --batch-size 99999999999999999999 => --batch-size got '9{20}'
--json models => unknown option --json; (?!did you mean --json)
train --bogus-thing 1 => unknown option --bogus-thing; see perturblab train --help
train -- --nepochs 1 => (?!.*did you mean --lr)
describe --image-size 2000000000 => --image-size 2000000000 is beyond what can be counted
describe --channels 2000000000 --nfilters 2000000000 => does not fit in memory.*--nfilters
train TINY --nfilters 2147483647 --out new => --nfilters|memory
train TINY --batch-size 2147483647 --code or --out new => --batch-size 2147483647 is larger
train TINY --out LONG => x{300} cannot be used
train TINY --out DEEP => (x/)+.*; choose another
"""

TABLE = [
    tuple(row.split(" => "))
    for part in (OPTIONS, VALUES, COMBINATIONS, DATA, FOLDERS, HARD)
    for row in part.strip("\n").splitlines()
]


def words(line: str) -> list[str]:
    return shlex.split(re.sub("|".join(WORDS), lambda word: WORDS[word[0]], line))


def test_table_is_long_and_says_nothing_twice() -> None:
    lines = [line for line, _ in TABLE]
    assert len(lines) == len(set(lines)) > 300


def refuse(good: Path, argv: list[str], pattern: str) -> None:
    ended = judge(good, argv)
    assert re.search(pattern, ended.err.splitlines()[-1]), ended.err


@pytest.mark.parametrize(("line", "pattern"), TABLE, ids=[line or "nothing" for line, _ in TABLE])
def test_mistake(line: str, pattern: str, good: Path) -> None:
    refuse(good, words(line), pattern)


@pytest.mark.parametrize(
    ("line", "pattern"),
    [
        ("train --net-type noiseresnet18 --first_filter_size 5", r"first_filter_size is 5"),
        ("train --net-type perturb_resnet18 --train_masks --redraw_masks train", r"both trained and redrawn"),
        ("train --net-type resnet18 --nmasks 3", r"--nmasks given"),
        ("train --device bogus", r"--device got 'bogus'"),
        (f"train --device cuda:{torch.cuda.device_count()}", r"--device got 'cuda:\d+', which is not"),
        ("train TINY --out file/new", r"file"),
    ],
)
def test_mistake_in_flags_is_told_before_the_data_are_read(
    line: str, pattern: str, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("the data are read")

    monkeypatch.setattr(data, "load", never)
    refuse(good, words(line), pattern)


def test_loss_that_is_not_finite(tmp_path: Path) -> None:
    """The one mistake that shows only after the first step: no number of it is left behind."""
    ended = run(words("train TINY --lr 1e30 --out new"), tmp_path)
    assert ended.code == 2
    assert re.fullmatch(r"perturblab: error: the loss is nan.*try --learning-rate 1e\+29.*\n", ended.err)
    assert not [name for name in ended.changed if ".json" in name or "weights" in name]
    assert run(words("train TINY --out new"), tmp_path).code == 0  # the folder can be used


def test_bytes_that_are_not_text() -> None:
    """A real process: bytes that are not UTF-8, a terminal that knows ASCII only."""
    for argument, encoding in ((b"\xff\xfe", "utf-8"), ("é".encode(), "ascii")):
        command = [sys.executable.encode(), *b"-m perturblab train --act".split(), argument]
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        done = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
        assert (done.returncode, done.stdout) == (2, b"")
        assert re.fullmatch(rb"perturblab: error: --act got .*; see --help\n", done.stderr), done.stderr


@pytest.mark.parametrize(
    "line",
    ["train --net-type {}", "train --dataset-train {}", "train LENET --classes {},0", "{}", "train {}", "report {}"],
)
def test_control_characters_are_shown_not_sent(line: str, good: Path) -> None:
    refuse(good, [word.replace("{}", "\x1b[31mred\n\r\x07") for word in words(line)], "red")


GOOD = (
    "models --json",
    "describe --net-type lenet --nfilters 2 --image-size 28,28 --channels 1 --nclasses 10 --json",
    "train TINY --optim-method Adam --lr 1e-3 --momentum 0.9 --out new",
    "train TINY --defence batchout --batchout-eta 0.1 --batchout-k 0.5 --classes 0,1,2 --out new",
    "train TINY --defence pgd --defence-eps 8/255 --defence-steps 2 --seed 3 --out new",
    "evaluate run --audit --batch-size 64 --json",
    "attack run --attacks fgsm,uniform --eps 0,8/255 --subset 10 --no-checks --quiet --json",
    "attack run --attacks deepfool --iterations 1,2 --norm l2 --subset 5 --no-checks --quiet",
    "attack run --attacks transfer-fgsm --source mixed --eps 0.1 --subset 10 --no-checks --quiet",
    "list --tag pnn --json",
    "show K4 --json",
    "run K4 --preset quick --seeds 2 --jobs 1 --dry-run --quiet",
    "report run --markdown",
    "report . --attacks",
)


@search(60)
@given(st.sampled_from(GOOD).map(words).flatmap(garbled).flatmap(lambda argv: st.just(argv) | garbled(argv or ["-"])))
@example(["train", "\udcff"])
@example(["evaluate", "\udcff"])
def test_garbled_command_line(good: Path, argv: list[str]) -> None:
    judge(good, argv, needs=["run", "mixed"], may_succeed=True, names=[*argv, "command", "run", "RUN"])


VALUE = {
    **{"nfilters": "3", "nmasks": "2", "unique_masks": "", "train_masks": "", "mix_maps": "", "level": "0.1"},
    **{"scale_noise": "2", "noise_type": "normal", "filter_size": "3", "first_filter_size": "3", "act": "elu"},
    **{"use_act": "", "pool_type": "avg", "constant_masks": "", "redraw_masks": "train", "untied_bias": ""},
    **{"mask_memory": "seed", "nweights": "2", "depth": "2", "full": "9", "anchors": "dense", "sparsity": "0.4"},
    **{"operator": "shift", "first_masks": "2", "first_sigmoid": "", "first_mix": ""},
    **{"padding": "1", "reading": "A", "blocks": "2", "norm_order": "bn-relu"},
}
UNREAD = [
    (net, option) for net in NETS for option in NET_OPTIONS if option in VALUE and option not in options_read(net)
]


@search(25)
@given(st.sampled_from(UNREAD), st.sampled_from(["describe", "train TINY --out new"]), st.sampled_from("-_"))
def test_option_that_the_net_does_not_read(good: Path, unread: tuple[str, str], command: str, dash: str) -> None:
    net, option = unread
    flag = option.replace("_", dash)
    refuse(
        good,
        words(f"{command} --net-type {net} --{flag} {VALUE[option]}"),
        rf"--{option.replace('_', '-')} given, but {net} does not read it.*--net-type",
    )
