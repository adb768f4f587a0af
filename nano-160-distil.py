"""CONFIG [options of vlora train]: a generator learns, without a question, the mean of what two trained ones make of an image.

W: share of the first (M3, 128 px); the rest is the student's own beginning (160 px). KEEP: eigenvectors of the inputs."""
import copy, os, random, sys, torch, vlora
import torch.nn.functional as F
from transformers.modeling_outputs import CausalLMOutputWithPast
from vlora.cli import app
from vlora.evaluate.deltas import MODULE_OF
from vlora.train import run
from vlora.train.loader import looks_of, steps_of
from vlora.train.looks import Task
from vlora.model.vision import shifted

W, KEEP = float(os.environ.get("W", 0.35)), int(os.environ.get("KEEP", 96))
LEARN = ("feature_norm.", "project.", "positions", "trunks.", "head_norms.")
VIEWS = [(0, 0), (2, 0), (-2, 0), (0, 2), (0, -2)]
MINE = [(x, y) for x in (-2, -1, 0, 1, 2) for y in (-2, -1, 0, 1, 2) if abs(x) + abs(y) <= 2]

def up(px):
    return F.interpolate(px, size=(160, 160), mode="bicubic", antialias=True).clamp(-1, 1)

class Distil:
    def __init__(self, learner):
        self.learner, self.new = learner, learner.model.model
        self.first = vlora.load("/tmp/s12/old", device="cpu").model.model
        self.second = copy.deepcopy(self.new.generator).requires_grad_(False).eval()
        self.first.requires_grad_(False)
        self.chance = random.Random(5)
        learner.processor.image_processor.size = {"height": 128, "width": 128}
        learned = 0
        for name, p in self.new.generator.named_parameters():
            p.requires_grad_(name.startswith(LEARN)); learned += p.numel() * p.requires_grad
        print("learning", learned, flush=True)
        self.layout = self.new.generator.layout
        self.measure()

    @torch.no_grad()
    def measure(self):
        """Covariance of what each worn layer reads."""
        config, lm = self.learner.config, self.learner.language_model
        sums, counts, hooks = {}, {}, []
        for layer, target in self.layout.place_of:
            def hook(module, args, key=(layer, target)):
                x = args[0].reshape(-1, args[0].shape[-1]).float()
                sums[key] = sums.get(key, 0) + x.mT @ x; counts[key] = counts.get(key, 0) + len(x)
            hooks.append(lm.get_submodule(f"layers.{layer}.{MODULE_OF[target]}").register_forward_pre_hook(hook))
        looks = looks_of(config, self.learner); steps = steps_of(config, looks); collate = self.learner.collator()
        for number in range(3):
            batch = collate([looks[Task(p, 1.0)] for p in steps[number][:24]])
            batch = batch[0] if isinstance(batch, tuple) else batch
            batch = {k: v for k, v in batch.items() if k != "seen"}
            batch["pixel_values"] = up(batch["pixel_values"])
            self.learner.model(**batch)
        for h in hooks: h.remove()
        self.root, self.bb = {}, {}
        self.a = {}
        shared = self.new.generator.expand(self.new.perceive(torch.zeros(1, 3, 160, 160))).shared
        for (layer, target), s in sums.items():
            c = s / counts[layer, target]
            w = lm.get_submodule(f"layers.{layer}.{MODULE_OF[target]}").weight.float()
            size = ((w @ c) * w).sum()
            values, vectors = torch.linalg.eigh(c.double())
            rest = values[:-KEEP].mean().clamp_min(0)
            root = ((values[-KEEP:] - rest).clamp_min(0).sqrt()[:, None] * vectors[:, -KEEP:].mT).float()
            b = shared[layer, target].float(); scale = self.layout.scale ** 2 / size
            # tr(Dt C D B Bt), C = root' root + rest I
            eig, vec = torch.linalg.eigh(((b @ b.mT) * scale).double())
            half = (vec * eig.clamp_min(0).sqrt()).float()   # [rank, rank]
            self.root[layer, target] = (root, float(rest) ** 0.5, half)
        print("measured", len(self.root), flush=True)

    def distance(self, made, wanted):
        total = 0
        for place, (root, rest, half) in self.root.items():
            d = (made.factors(*place)[0] - wanted[place]) @ half
            total = total + (root @ d).square().sum((-2, -1)).mean() + rest ** 2 * d.square().sum((-2, -1)).mean()
        return total

    def loss(self, pixel_values=None, **_):
        if pixel_values is None:
            learning = [p for p in self.new.generator.parameters() if p.requires_grad]
            return CausalLMOutputWithPast(loss=0 * torch.stack([p.flatten()[0] for p in learning]).sum())
        big = up(pixel_values)
        v1, v2, v3 = (self.chance.choice(x) for x in (VIEWS, VIEWS, MINE))
        with torch.no_grad():
            one = self.first.generator
            a1 = one.expand(one_params(one, self.first._features(shifted(pixel_values, *v1))))
            f2 = self.new._features(shifted(big, *v2))
            f3 = self.new._features(shifted(big, *v3))
            a2 = self.second.expand(one_params(self.second, f2))
            wanted = {p: W * a1.factors(*p)[0] + (1 - W) * a2.factors(*p)[0] for p in self.root}
        made = self.new.expand(one_params(self.new.generator, f3))
        return CausalLMOutputWithPast(loss=self.distance(made, wanted))

def one_params(generator, features):
    return generator.perceive(features)

def main(arguments):
    plain = run.build
    def build(config, device):
        learner = plain(config, device)
        change = Distil(learner)
        learner.model.forward = change.loss
        return learner
    run.build = build
    app(["train", *arguments])

if __name__ == "__main__":
    main(sys.argv[1:])
