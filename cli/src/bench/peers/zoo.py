"""Trains the same tiny CNNs with PyTorch: python zoo.py MODE FOLDER

MODE is `loop` (one model after the other, a plain training loop), `processes` (the same, half of the models in each of
two processes of one thread), or `vmap` (torch.func: all models as one, with stacked parameters). FOLDER holds
`data.safetensors`: images and labels of the training and of the test part, and the start of every model.

Prints {"ready": true, ...}, then for each line N on standard input makes N steps of all models and prints
{"seconds": ..., "accuracy": ...}; accuracy is measured outside of the time.
"""

import json
import multiprocessing
import os
import sys
import time

import torch
from safetensors import safe_open
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap


class TinyCnn(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 5)
        self.conv2 = nn.Conv2d(8, 6, 5)
        self.conv3 = nn.Conv2d(6, 4, 2)
        self.fc1 = nn.Linear(36, 20)
        self.fc2 = nn.Linear(20, classes)

    def forward(self, x):
        x = torch.tanh(nn.functional.max_pool2d(self.conv1(x), 2))
        x = torch.tanh(nn.functional.max_pool2d(self.conv2(x), 2))
        x = torch.tanh(self.conv3(x)).flatten(1)
        return self.fc2(torch.tanh(self.fc1(x)))


class Data:
    def __init__(self, folder):
        with safe_open(os.path.join(folder, "data.safetensors"), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            settings = json.loads(file.metadata()["settings"])
        self.train_x, self.test_x = tensors["train.x"], tensors["test.x"]
        self.train_y, self.test_y = tensors["train.y"].long(), tensors["test.y"].long()
        self.start = tensors["start"]
        self.batch, self.lr = settings["batch"], settings["lr"]

    def model(self, start):
        """The network with these weights, in the order of its parameters."""
        model = TinyCnn(self.train_x.shape[1], int(self.train_y.max()) + 1)
        torch.nn.utils.vector_to_parameters(start.clone(), model.parameters())
        return model

    def adam(self, parameters):
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=0.0, fused=True)


def indices(data, generator):
    """Batches of one model: as many images of each class, in a new order in each epoch."""
    classes = int(data.train_y.max()) + 1
    lists = [(data.train_y == label).nonzero().flatten() for label in range(classes)]
    share, steps = max(data.batch // classes, 1), max(round(min(map(len, lists)) * classes / data.batch), 1)
    while True:
        epoch = []
        for images in lists:
            images = images[torch.randperm(len(images), generator=generator)]
            epoch.append(images[torch.arange(steps * share) % len(images)].view(steps, share))
        yield from torch.cat(epoch, dim=1)


def generators(models):
    return [torch.Generator().manual_seed(model) for model in models]


class Loop:
    def __init__(self, data, models):
        self.data = data
        self.models = [data.model(data.start[model]) for model in models]
        self.adams = [data.adam(model.parameters()) for model in self.models]
        self.batches = [indices(data, generator) for generator in generators(models)]
        self.loss = nn.CrossEntropyLoss()

    def steps(self, count):
        data = self.data
        for model, adam, batches in zip(self.models, self.adams, self.batches):
            for _ in range(count):
                batch = next(batches)
                adam.zero_grad(set_to_none=True)
                self.loss(model(data.train_x[batch]), data.train_y[batch]).backward()
                adam.step()

    def accuracies(self):
        with torch.no_grad():
            right = [model(self.data.test_x).argmax(1) == self.data.test_y for model in self.models]
        return [float(r.float().mean()) for r in right]


class Vmap:
    def __init__(self, data, models):
        self.data = data
        parameters, _ = stack_module_state([data.model(data.start[model]) for model in models])
        self.parameters = parameters
        # AdamW goes value by value, so it can have the stacked parameters of all models as they are.
        self.adam = data.adam(parameters.values())
        self.batches = [indices(data, generator) for generator in generators(models)]
        base = data.model(data.start[0]).to("meta")

        def logits(parameters, x):
            return functional_call(base, parameters, (x,))

        def loss(parameters, x, y):
            return nn.functional.cross_entropy(logits(parameters, x), y)

        self.gradients = vmap(grad(loss))
        self.logits = vmap(logits, in_dims=(0, None))

    def steps(self, count):
        data = self.data
        for _ in range(count):
            batch = torch.stack([next(batches) for batches in self.batches])
            detached = {name: value.detach() for name, value in self.parameters.items()}
            gradients = self.gradients(detached, data.train_x[batch], data.train_y[batch])
            for name, value in self.parameters.items():
                value.grad = gradients[name]
            self.adam.step()

    def accuracies(self):
        with torch.no_grad():
            right = self.logits(self.parameters, self.data.test_x).argmax(2) == self.data.test_y
        return right.float().mean(1).tolist()


def child(pipe, folder, models):
    torch.set_num_threads(1)
    loop = Loop(Data(folder), models)
    pipe.send("ready")
    try:
        while True:
            loop.steps(pipe.recv())
            pipe.send("done")
            pipe.recv()
            pipe.send(loop.accuracies())
    except EOFError:
        pass  # the parent has ended


class Processes:
    COUNT = 2

    def __init__(self, folder, models):
        context = multiprocessing.get_context("spawn")
        self.pipes = []
        for process in range(self.COUNT):
            ours, theirs = context.Pipe()
            own = models[process :: self.COUNT]
            context.Process(target=child, args=(theirs, folder, own), daemon=True).start()
            theirs.close()
            self.pipes.append(ours)
        for pipe in self.pipes:
            pipe.recv()

    def steps(self, count):
        for pipe in self.pipes:
            pipe.send(count)
        for pipe in self.pipes:
            pipe.recv()

    def accuracies(self):
        for pipe in self.pipes:
            pipe.send("accuracies")
        return [accuracy for pipe in self.pipes for accuracy in pipe.recv()]


def main():
    mode, folder = sys.argv[1:]
    data = Data(folder)
    models = list(range(len(data.start)))
    if mode == "processes":
        trained = Processes(folder, models)
    else:
        trained = {"loop": Loop, "vmap": Vmap}[mode](data, models)
    print(json.dumps({"ready": True, "torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        trained.steps(int(line))
        seconds = time.perf_counter() - began
        accuracies = trained.accuracies()
        print(json.dumps({"seconds": seconds, "accuracy": sum(accuracies) / len(accuracies)}), flush=True)


if __name__ == "__main__":
    main()
