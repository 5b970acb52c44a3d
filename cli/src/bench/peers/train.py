"""The training step of `weightsmith bench training`; the networks are those of networks.py, which comes before this in the
file.

`python train.py NAME FOLDER` reads FOLDER/model.safetensors and FOLDER/data.safetensors, prints a line
{"ready": true, "loss": …} with the loss of those weights on those data, and then for each line N on its input trains
N steps and prints {"seconds": …, "loss": …}, the loss being that of the last of them.
"""


def load(name, folder):
    weights = load_file(os.path.join(folder, "model.safetensors"))
    data = load_file(os.path.join(folder, "data.safetensors"))
    model = NETWORKS[name](data["latent"].shape[1:], data["condition"].shape[1])
    state = {key: weights.pop(ours(key)).reshape(value.shape) for key, value in model.state_dict().items()}
    assert not weights, f"parameters that this network does not have: {sorted(weights)}"
    model.load_state_dict(state)
    return model, data


def decays(name, parameter):
    """Whether weight decay applies: not to biases, nor to the vectors of layer normalisations. A group normalisation's
    have three dimensions on the other side."""
    group_norm = parameter.dim() == 1 and state_rank.get(name, 1) > 1
    return parameter.dim() > 1 or group_norm


state_rank = {}


def main():
    name, folder = sys.argv[1:]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model, data = load(name, folder)
    file = load_file(os.path.join(folder, "model.safetensors"))
    state_rank.update({key: file[ours(key)].dim() for key, _ in model.named_parameters()})
    inputs = (data["latent"], data["timestep"], data["condition"])
    decayed = [p for n, p in model.named_parameters() if decays(n, p)]
    others = [p for n, p in model.named_parameters() if not decays(n, p)]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, fused=True)
    parameters = list(model.parameters())
    average = [p.detach().clone() for p in parameters]
    done = 0

    def step():
        nonlocal done
        optimizer.zero_grad(set_to_none=True)
        loss = F.mse_loss(model(*inputs), data["target"])
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        done += 1
        decay = min(EMA, (1 + done) / (10 + done))
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - decay)
        return loss.item()

    with torch.no_grad():
        loss = F.mse_loss(model(*inputs), data["target"]).item()
    print(json.dumps({"ready": True, "loss": loss}), flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            loss = step()
        print(json.dumps({"seconds": time.perf_counter() - began, "loss": loss}), flush=True)


main()
