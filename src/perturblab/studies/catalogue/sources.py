"""Where things were published; each text takes the place within it."""

OR = "juefeix/pnn.pytorch, {} (https://github.com/juefeix/pnn.pytorch)"
KL = "michaelklachko/pnn.pytorch, {} (https://github.com/michaelklachko/pnn.pytorch)"
UP = "juefeix/pnn.pytorch.update, {} (https://github.com/juefeix/pnn.pytorch.update)"
PAPER = "Juefei-Xu, Boddeti, Savvides, Perturbative Neural Networks, CVPR 2018, {} (https://arxiv.org/abs/1806.01817)"
LBCNN = "Juefei-Xu, Boddeti, Savvides, Local Binary CNNs, CVPR 2017, {} (https://arxiv.org/abs/1608.06049)"
LUA = "juefeix/lbcnn.torch, {} (https://github.com/juefeix/lbcnn.torch)"
TOY = "dizcza/lbcnn.pytorch, {} (https://github.com/dizcza/lbcnn.pytorch)"
BATCHOUT = (
    "Subramanya, Mopuri, Babu, BatchOut: Batch-level feature augmentation to improve robustness to adversarial "
    "examples, ICVGIP 2018, {}"
)
R1 = (
    "Hrushikesh-github/Batchout-Robustness-method, {} (https://github.com/Hrushikesh-github/Batchout-Robustness-method)"
)
R2 = "Hrushikesh-github/BatchOut, {} (https://github.com/Hrushikesh-github/BatchOut)"
TRIALS = "trial notes of the author of Hrushikesh-github/BatchOut, {} (https://github.com/Hrushikesh-github/BatchOut)"
