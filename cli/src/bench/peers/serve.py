"""What one writes instead of `weightsmith`: samples latents with the same denoiser, noise and steps, and decodes them.

`python serve.py MODE FOLDER BATCH` reads FOLDER/denoiser.onnx, FOLDER/vae_decoder.onnx, FOLDER/plan.json and
FOLDER/noise.safetensors, samples BATCH networks once, writes what it got to FOLDER/MODE-BATCH.safetensors, prints
{"ready": true}, and then for each line N on its input samples N times and prints {"seconds": …}. MODE is `ort`
(ONNX Runtime with its defaults), `eager` (PyTorch), `compile` (torch.compile) or `diffusers` (PyTorch, with the steps
of diffusers' DDIMScheduler); the networks of PyTorch are those of networks.py, which comes before this in the file,
with the weights of the graphs.
"""


class Decoder(nn.Module):
    def __init__(self, weights):
        super().__init__()
        hidden, latent = weights["decoder.0.weight"].shape
        self.first, self.norm = nn.Linear(latent, hidden), nn.LayerNorm(hidden)
        self.leave = nn.Linear(hidden, len(weights["decoder.out.weight"]))
        names = {"first": "decoder.0", "norm": "decoder.norm0", "leave": "decoder.out"}
        rename = lambda key: key.replace(key.split(".")[0], names[key.split(".")[0]], 1)
        self.load_state_dict({key: weights[rename(key)] for key in self.state_dict()})

    def forward(self, z):
        return self.leave(F.silu(self.norm(self.first(z.flatten(1)))))


def torch_networks(folder, compiled):
    import onnx
    from onnx import numpy_helper

    def weights(name):
        graph = onnx.load(os.path.join(folder, name)).graph
        return {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    plan = json.load(open(os.path.join(folder, "plan.json")))
    own = weights("denoiser.onnx")
    kind = NETWORKS[plan["network"].pop("kind")]
    denoiser = kind(plan["latent"], len(plan["condition"]), **plan["network"])
    denoiser.load_state_dict({k: own[ours(k)].reshape(v.shape) for k, v in denoiser.state_dict().items()})
    networks = denoiser.eval(), Decoder(weights("vae_decoder.onnx")).eval()
    return tuple(torch.compile(n) for n in networks) if compiled else networks


def ort_networks(folder):
    import onnxruntime

    def session(name):
        options = onnxruntime.SessionOptions()
        return onnxruntime.InferenceSession(os.path.join(folder, name), options, providers=["CPUExecutionProvider"])

    denoiser, decoder = session("denoiser.onnx"), session("vae_decoder.onnx")
    return (
        lambda z, t, c: denoiser.run(None, {"latent": z, "timestep": t, "condition": c})[0],
        lambda z: decoder.run(None, {"latent": z})[0],
    )


def ddim(schedule, steps):
    """diffusers' scheduler for the same noise schedule and timesteps."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        num_train_timesteps=schedule["steps"],
        beta_start=schedule["beta_start"],
        beta_end=schedule["beta_end"],
        beta_schedule="linear",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    return scheduler


def serve():
    import numpy
    from safetensors.numpy import load_file as load_arrays, save_file

    mode, folder, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
    plan = json.load(open(os.path.join(folder, "plan.json")))
    noise = load_arrays(os.path.join(folder, "noise.safetensors"))["noise"][:batch]
    condition = numpy.tile(numpy.array(plan["condition"], dtype=numpy.float32), (batch, 1))
    times = [numpy.full(batch, step["t"], dtype=numpy.float32) for step in plan["steps"]]
    as_input = (lambda x: x) if mode == "ort" else torch.from_numpy
    denoise, decode = ort_networks(folder) if mode == "ort" else torch_networks(folder, mode == "compile")
    noise, condition, times = as_input(noise), as_input(condition), [as_input(t) for t in times]

    @torch.inference_mode()
    def sample():
        z = noise
        for step, t in zip(plan["steps"], times):
            z = step["latent"] * z + step["prediction"] * denoise(z, t, condition)
        return decode(z / plan["scale"])

    @torch.inference_mode()
    def sample_with(scheduler):
        z = noise
        for t in scheduler.timesteps:
            z = scheduler.step(denoise(z, t.float().expand(batch), condition), t, z).prev_sample
        return decode(z / plan["scale"])

    if mode == "diffusers":
        scheduler = ddim(plan["schedule"], len(plan["steps"]))
        sample = lambda: sample_with(scheduler)

    found = numpy.asarray(sample())
    statistics = load_arrays(os.path.join(folder, "standardisation.safetensors"))
    save_file({"weights": found * statistics["std"] + statistics["mean"]}, os.path.join(folder, f"{mode}-{batch}.safetensors"))
    sample()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            sample()
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


serve()
