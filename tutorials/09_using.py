# %% [markdown]
# # 09 · Using a network: ask it, and ask it why
#
# Somebody trained a network for weeks. Now it is a file of numbers, and here is a photograph.
#
# **What must be done to the photograph, to the last grey level, so that these numbers make sense? What have they learnt
# to see? And when a network answers: what, in the picture, made it say so?**
#
# We load the first layers of the VGG group's own VGG-16, look at their filters and maps, and feed them wrongly on
# purpose, to measure what that costs. Then a small network of our own is asked for its reasons, by gradients; and at
# the end it slides over pictures larger than any that it was trained on. About an hour, two exercises.

# %%
import copy
import inspect
import os
import tempfile
import textwrap
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import cbook
from PIL import Image
from threadpoolctl import threadpool_limits

from minivgg import weights
from minivgg.exercises import check_exercise
from minivgg.insight import drawing, pictures, seeing
from minivgg.insight.ledger import ledger
from minivgg.models.vgg import vgg
from minivgg.training.preprocessing import CAFFE, TORCHVISION, Preprocessing, resize_shorter

# %matplotlib inline
FAST = "MINIVGG_FAST" in os.environ
plt.rcParams.update(pictures.STYLE)
plt.rcParams["figure.dpi"] = 80
threadpool_limits(1, "blas")  # NumPy's own threads and the library's would fight for the cores
rng = np.random.default_rng(0)

# %% [markdown]
# ## A file of numbers
#
# Published weights come as a table: a name, a shape, numbers. Loading them is matching names and shapes, and nothing
# else; that everything fits must be known *before* the first number is copied, or half a network is left behind. (In
# many formats the table is a program, too, which runs when it is opened. The library never runs it:
# `docs/weights.md`.)
#
# The whole of VGG-16 is half a gigabyte. Its first seven convolutions, as Oxford's Visual Geometry Group published them
# (Simonyan & Zisserman, CC BY 4.0), come with minivgg:

# %%
network = vgg("D", classes=10, classifier_width=16, init="zeros")
print(weights.load(network, "oxford"))

# %%
oxford = network.features_at("relu3_3")
for name, param in oxford.named_params().items():
    values = param.data
    print(f"{name:20} {values.shape!s:18} mean {values.mean():+.4f}, deviation {values.std():.4f}")

# %% [markdown]
# ## What it looks for first
#
# A filter of the first layer meets the pixels themselves, so it can be looked at as a picture of 3×3 pixels: what it
# would most like to see. One thing first: these filters take their channels in the order blue, green, red, so that we
# have to turn them round to see them in their colours.

# %%
first = seeing.first_filters(oxford)[:, ::-1]
pictures.filters(first, "VGG-16's first layer")

# %% [markdown]
# Edges in all directions, light and dark, and colours against each other. Nobody told it so. Which share of each filter
# is about colour, and which about light and dark alone? Grey is what the three channels have in common: their mean.

# %%
grey = first.mean(axis=1, keepdims=True)
colourful = ((first - grey) ** 2).sum(axis=(1, 2, 3)) / (first**2).sum(axis=(1, 2, 3))
print(f"{np.mean(colourful > 0.5):.0%} of the filters are mostly about colour,")
print(f"{np.mean(colourful < 0.1):.0%} hardly at all")

# %% [markdown]
# ## What it wants to be fed
#
# The photograph is of Rear Admiral Grace Hopper, who wrote one of the first compilers. It comes with Matplotlib.

# %%
image = np.array(Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
crop = resize_shorter(image, 256)
top, left = ((n - 224) // 2 for n in crop.shape[:2])
crop = crop[top : top + 224, left : left + 224]
figure, panels = plt.subplots(1, 2, figsize=(6, 3.4))
for axes, shown, title in zip(panels, (image, crop), ("photograph", "what it sees"), strict=True):
    axes.imshow(shown)
    axes.set(xticks=[], yticks=[], title=f"{title}: {shown.shape[1]}×{shown.shape[0]}")
    axes.grid(False)
plt.show()

# %% [markdown]
# Oxford's network was trained on pictures that were prepared in one exact way, and it expects no other: shorter side to
# 256, the middle 224×224, channels blue, green, red, numbers from 0 to 255, minus the mean colour of ImageNet. Four
# lines:

# %%
MEAN = np.array([103.939, 116.779, 123.68], np.float32)


def prepare(crop, order=(2, 1, 0), mean=MEAN, white=255):
    x = crop[:, :, order].astype(np.float32) - mean
    return (x * (white / 255)).transpose(2, 0, 1)


right = prepare(crop)
print(f"from the library's, ours differs by {np.abs(right - CAFFE(image)).max():.0e} grey levels")

# %%
print(inspect.getsource(Preprocessing.__call__))
print(inspect.getsource(Preprocessing.window))

# %% [markdown]
# One pipeline for training and for use, as data: a mean, a deviation, a size, an order of channels. It is kept beside
# the weights, because weights without it are worth little, as we shall see now.
#
# ## What mistakes cost
#
# Feed it wrongly, and nothing happens. No error, no warning: every array of three channels has an answer. This makes it
# the commonest mistake of all, and the longest-lived. So let us measure: the network's features of the wrong picture
# against those of the right one, as the cosine of the angle between them: 1 is no difference. And since nobody knows
# what a cosine of 0.8 is worth, two yardsticks: the same photograph upside down, and *no photograph at all*, a grey
# square of the mean colour.


# %%
def resized(how):
    H, W = image.shape[:2]
    side = 256 / min(H, W)
    small = Image.fromarray(image).resize((int(W * side), int(H * side)), how)
    return np.array(small)[top : top + 224, left : left + 224]


squashed = np.array(Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR))
mistakes = {
    "nearest pixel": prepare(resized(Image.Resampling.NEAREST)),
    "mean forgotten": prepare(crop, mean=0),
    "red and blue swapped": prepare(crop, order=(0, 1, 2)),
    "squashed, not cropped": prepare(squashed),
    "upside down": right[:, ::-1],
    "no picture at all, grey": np.zeros_like(right),
    "torchvision's pipeline": TORCHVISION(image),
    "0 to 1, not 0 to 255": prepare(crop, white=1),
}
depths = "relu1_1", "relu1_2", "relu2_2", "relu3_1", "relu3_3"


def cosine(a, b):
    a, b = a.ravel().astype(float), b.ravel().astype(float)
    return a @ b / np.sqrt((a @ a) * (b @ b))


costs = {name: [] for name in mistakes}
for depth in depths:
    up_to = network.features_at(depth)
    reference = up_to.forward(right[None])
    for name, wrong in mistakes.items():
        costs[name].append(cosine(up_to.forward(wrong[None]), reference))
print(f"{'cosine with the right features at':34}" + "  ".join(depths))
for name, row in costs.items():
    print(f"{name:34}" + "  ".join(f"{value:7.3f}" for value in row))

# %%
figure, axes = plt.subplots(figsize=(9, 3.8))
purple, sky = "#CC79A7", "#56B4E9"
colours = [pictures.GREEN, pictures.ORANGE, pictures.RED, purple, pictures.GREY, "#AAAAAA", sky]
for (name, row), colour in zip(costs.items(), [*colours, pictures.BLUE], strict=True):
    line = "--" if name in ("upside down", "no picture at all, grey") else "-"
    axes.plot(depths, row, "o" + line, color=colour, label=name)
axes.set(ylabel="cosine with the right features", ylim=(0, 1.05), title="What a mistake costs")
axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
plt.show()

# %% [markdown]
# Read it against the yardsticks. What *moves* things, squashing as much as turning, leaves hardly more than a grey
# square would: a cosine compares place by place, and the network may still know the face. The others leave everything
# where it is. A forgotten mean is forgiven, the more so the deeper one looks: an edge is an edge at any brightness. A
# red that has become blue is not, quite. And a cosine does not see sizes: on the scale of 0 to 1 the features are also
# far too small, while the biases of the layers to come are made for large ones. At the end of the whole network that is
# the worst of all these mistakes (`docs/using.md` has them measured there).
#
# Can a library notice? It sees the weights only, before the first picture comes. But Oxford's filters are known, and so
# is what they were trained on. Say that you are going to feed this network as torchvision feeds its own:

# %%
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    weights.load(
        vgg("D", classes=10, classifier_width=16, init="zeros"), "oxford", input="torchvision"
    )
for warning in caught:
    print(textwrap.fill(str(warning.message).partition("npz: ")[2], 100))

# %% [markdown]
# ### Moving the mistake into the weights
#
# There is a second way to be right: leave the picture as it is, and change the first layer. torchvision's $x$ is
# $(p/255 - \mu)/\sigma$ for a byte $p$. So $p = 255\,(\sigma x + \mu)$, and what the first convolution multiplies,
# $p - m$, is again a factor times $x$ plus a constant:
#
# $$w\,(p - m) = \underbrace{255\,\sigma\,w}_{w'}\;x \;+\; \underbrace{w\,(255\,\mu - m)}_{\text{into the bias}}$$
#
# A scaling of a layer's input can always be moved into the layer. The channels' order, too: turn the filters round.

# %%
other = vgg("D", classes=10, classifier_width=16, init="zeros")
weights.load(other, "oxford")
weights.to_torchvision_input(other)
ours = oxford.forward(right[None])
theirs = other.features_at("relu3_3").forward(TORCHVISION(image)[None])
print(f"cosine {cosine(ours, theirs):.6f}")
print(f"largest difference {np.abs(ours - theirs).max():.2g} of {ours.max():.0f}: whole map")
inner = np.s_[:, :, 8:-8, 8:-8]
print(f"largest difference {np.abs((ours - theirs)[inner]).max():.2g}: away from the border")

# %% [markdown]
# The same features from other weights and another picture. At the border a little is left: padding puts zeros around
# the picture, and a zero is one colour for the one network, and a slightly different one for the other.
#
# ## What the layers see
#
# A *feature map* is one filter's answer at each place. After the second layer:

# %%
pictures.maps(seeing.feature_maps(network, right[None], "features.3")[0], crop, "relu1_2", most=31)

# %% [markdown]
# Edges of one direction or another, and in a few maps surfaces of a colour: the blue of the wall, the face and the
# flag. The picture can still be recognised in each. And after the seventh:

# %%
pictures.maps(ours[0], crop, "relu3_3", most=31)

# %%
for depth in depths:
    values = network.features_at(depth).forward(right[None])
    print(f"{depth}: {values[0].shape!s:16} {np.mean(values == 0):.0%} of the values are zero")

# %% [markdown]
# Fewer places, more maps, and at the end more of them silent: a deeper filter is choosier. Which patches please one
# most? Take some maps, find the place where each is largest, and cut out what the unit there sees. How far that is, you
# computed in notebook 07: seven convolutions and two pools.

# %%
field = next(row.receptive_field for row in reversed(ledger(oxford, (1, 3, 224, 224)).rows))
strongest = np.argsort(-ours[0].max(axis=(1, 2)))[:10]
padded = np.pad(
    crop, ((field, field), (field, field), (0, 0)), mode="constant", constant_values=255
)
figure, grid = plt.subplots(1, 10, figsize=(11, 1.6))
for axes, k in zip(grid, strongest, strict=True):
    row, column = np.unravel_index(ours[0, k].argmax(), ours.shape[2:])
    y, x = (4 * place + 2 + field - field // 2 for place in (row, column))
    axes.imshow(padded[y : y + field, x : x + field])
    axes.set_title(f"map {k}", fontsize=9)
    axes.axis("off")
plt.show()
print(f"each patch is the {field}×{field} pixels that one unit of relu3_3 sees")

# %% [markdown]
# ## A network with an opinion
#
# Seven convolutions have no opinion: the layers that name things are not there. For asking *why* we need a network that
# answers, so here is a small VGG of our own, trained on the clothes, as in the tour.

# %%
from minivgg.training.config import Config
from minivgg.training.run import Run

run = Run(Config(epochs=1 if FAST else 3, warmup=0.5), Path(tempfile.mkdtemp()))
untrained = Run(Config(epochs=1, seed=1), Path(tempfile.mkdtemp())).trainer.model
run.trainer.fit(progress=False)
model = run.trainer.model
print(f"test accuracy {run.trainer.history[-1]['test_accuracy']:.1%}")

# %%
kinds = 9, 5, 1, 8
shown = [run.test_set.image(int(np.argmax(run.test_set.labels == k))) for k in kinds]
batch = np.stack([run.preprocessing(picture) for picture in shown])
seen = [run.preprocessing.denormalise(x) for x in batch]
answers = model.forward(batch).argmax(axis=1)
print("  ".join(run.classes[k] for k in answers))

# %% [markdown]
# ## Which pixels matter?
#
# You have a backward. So far it has told how to change the *weights*. It tells as well how the score $s_k$ of a class
# changes with every pixel:
#
# $$\frac{\partial s_k}{\partial x_{cij}}$$
#
# Hand the last layer a $dy$ that is 1 for class $k$ and 0 elsewhere, and go back all the way. Large values, of either
# sign, are pixels that would change the answer if they changed a little: *saliency* (Simonyan, Vedaldi & Zisserman
# [2013](https://arxiv.org/abs/1312.6034), by the authors of VGG). Take the score before the softmax: a probability also
# goes up when the *other* scores go down.


# %%
def gradient_of_score(model, x, k):
    scores = model.forward(x, keep=True)
    dy = np.zeros_like(scores)
    dy[:, k] = 1
    dx = model.backward(dy)
    model.zero_grad()
    return dx


x, k = batch[:1], answers[0]
dx = gradient_of_score(model, x, k)
print(f"as the library's: {np.array_equal(dx[0], seeing.image_gradient(model, x, k))}")
precise = copy.deepcopy(model).astype(np.float64)
direction, h = rng.standard_normal(x.shape), 1e-6
noise = 0.01 * np.random.default_rng(1).standard_normal(x.shape)
for name, at in (("the picture", x.astype(float)), ("with a little noise", x + noise)):
    scores = [precise.forward(at + sign * h * direction)[0, k] for sign in (1, -1)]
    slope = np.sum(gradient_of_score(precise, at, k) * direction)
    print(f"{name}: slope {(scores[0] - scores[1]) / (2 * h):.6f}, by the gradient {slope:.6f}")

# %% [markdown]
# The first two do not agree! Backward is right, as the second line shows; the picture stands on a kink. Its
# background is one and the same value, so that in every max-pool there all windows are ties. A random step breaks
# them, and forward takes whichever has grown, while a gradient follows the first (notebook 06). A little noise, and
# there are no ties. A gradient is one of many slopes on such a picture: keep it in mind when you look at it. (Batch
# norm runs by its averages here, and dropout not at all: we ask the network that answers, not the one that learns.)
#
# ## Where does it look?
#
# A gradient at the pixels is a fine, nervous thing. The inner maps are calmer: each stands for something, and knows
# where it is. **Grad-CAM** (Selvaraju et al. [2017](https://arxiv.org/abs/1610.02391)) asks two questions of a layer's
# maps $A_k$, of shape $(K, H, W)$. How much does map $k$ speak for the class? The mean of its gradient,
# over its places:
#
# $$\alpha_k = \frac1{HW}\sum_{ij} \frac{\partial s}{\partial A_{kij}}$$
#
# And where do the maps that speak for it, less those that speak against it, have something to say?
#
# $$\boxed{\;\text{CAM}_{ij} = \max\Bigl(0,\; \sum_k \alpha_k\,A_{kij}\Bigr)\;}$$
#
# Two maps of 2×2, to be worked by hand:

# %%
maps = np.array([[[1.0, 5.0], [0.0, 3.0]], [[2.0, 0.0], [1.0, 1.0]]])
gradients = np.array([[[3.0, 2.0], [-1.0, 0.0]], [[-2.0, -4.0], [0.0, -2.0]]])
alpha = [np.mean(gradient) for gradient in gradients]
figure, panels = plt.subplots(1, 6, figsize=(11, 2))
drawn = {
    "$A_0$": maps[0],
    "$A_1$": maps[1],
    f"its gradient, mean {alpha[0]:g}": gradients[0],
    f"its gradient, mean {alpha[1]:g}": gradients[1],
    f"{alpha[0]:g}·$A_0$ − {-alpha[1]:g}·$A_1$": alpha[0] * maps[0] + alpha[1] * maps[1],
    "what is positive": np.maximum(alpha[0] * maps[0] + alpha[1] * maps[1], 0),
}
order = 0, 2, 1, 3, 4, 5
for axes, place in zip(panels, order, strict=True):
    title, values = list(drawn.items())[place]
    drawing.matrix(axes, values, title, span=5)
plt.show()

# %% [markdown]
# ### Exercise 09.1 · where the network sees it
#
# Write `grad_cam(maps, gradients)`: both $(K, H, W)$, the maps of a layer and the gradient of the class's score at
# them. The answer is $(H, W)$. Leave its scale as it is.
#
# <details><summary>Hint: one weight for each map</summary>
#
# `gradients.mean(axis=(1, 2))` has shape $(K)$. To meet the maps it has to be $(K, 1, 1)$.
#
# </details>
# <details><summary>Hint: which of the two comes first, the sum or the ReLU?</summary>
#
# A place where one map says "a trouser leg" and another one says "certainly not" should lose by the second. What
# speaks against the class has to be subtracted before anything is cut off.
#
# </details>


# %% exercise="09.1"
def grad_cam(maps, gradients):
    ### BEGIN SOLUTION
    weights = gradients.mean(axis=(1, 2))
    total = (weights[:, None, None] * maps).sum(axis=0)
    return np.maximum(total, 0)
    ### END SOLUTION


# %%
check_exercise("09.1", grad_cam)

# %% [markdown]
# To have maps and gradients of an inner layer, somebody must look over the network's shoulder: `watched` reports what
# each layer gives on the way forward, and which gradient reaches it on the way back.

# %%
from minivgg.insight.watching import watched

layer = seeing.stage_layers(model)[2]


def explain(model, x, k):
    found = {}

    def see(name, _, y):
        if name == layer:
            found["maps"] = y[0]

    def reach(name, _, dy):
        if name == layer:
            found["gradients"] = dy[0].copy()

    with watched(model, see, reach):
        gradient_of_score(model, x, k)
    return grad_cam(**found)


cams = [explain(model, batch[i : i + 1], answers[i]) for i in range(len(batch))]
library = seeing.grad_cam_maps(model, batch[:1], answers[0], [layer])[0]
print(
    f"{layer}: maps of {cams[0].shape}, from the library's differ by {np.abs(cams[0] - library).max():.0e}"
)

# %%
heats = []
for x, k, cam in zip(batch, answers, cams, strict=True):
    saliency = np.abs(gradient_of_score(model, x[None], k)[0]).max(axis=0)
    heats.append([saliency / saliency.max(), seeing.scaled(cam, x.shape[1:])])
names = [run.classes[k] for k in answers]
pictures.heat(seen, heats, names, ["saliency", f"Grad-CAM at {layer}"], "share of maximum")

# %%
print(inspect.getsource(seeing.grad_cam_maps))

# %% [markdown]
# The papers take the last convolution. Ours has maps of 2×2 there, which is a poor picture of where anything is: five
# pools leave one place for 32 pixels, and a photograph has hundreds of pixels while these clothes have 28. So we took
# the third stage, and pay for the finer picture: its maps know less about garments.
#
# ## Is it true?
#
# A heat map is convincing whether it is right or not. It is a claim, *here is what mattered*, and a claim can be
# tested: cover a quarter of the width and of the height where the map is brightest, and look how sure the network still
# is. If the map means anything, that should hurt more than covering a square at random, and much more than covering the
# place where it is darkest.

# %%
some = [run.test_set.image(i) for i in range(20 if FAST else 200)]
tested = np.stack([run.preprocessing(picture) for picture in some])
choices = model.forward(tested).argmax(axis=1)
SIDE = 8


def blocks(heat):
    return heat.reshape(32 // SIDE, SIDE, 32 // SIDE, SIDE).mean(axis=(1, 3)).ravel()


def places(x, k):
    cam = blocks(seeing.scaled(explain(model, x[None], k), (32, 32)))
    saliency = blocks(np.abs(gradient_of_score(model, x[None], k)[0]).max(axis=0))
    return {
        "nowhere": None,
        "darkest in Grad-CAM": cam.argmin(),
        "anywhere": rng.integers(len(cam)),
        "brightest in Grad-CAM": cam.argmax(),
        "brightest in saliency": saliency.argmax(),
    }


def covered(x, block):
    hidden = x.copy()
    if block is not None:
        i, j = (SIDE * place for place in np.unravel_index(block, (32 // SIDE, 32 // SIDE)))
        hidden[:, i : i + SIDE, j : j + SIDE] = x.min()
    return hidden


from minivgg.ops.softmax_cross_entropy import softmax_forward

where = [places(x, k) for x, k in zip(tested, choices, strict=True)]
sure = {}
for name in where[0]:
    hidden = np.stack([covered(x, place[name]) for x, place in zip(tested, where, strict=True)])
    sure[name] = softmax_forward(model.forward(hidden))[0][np.arange(len(hidden)), choices]
figure, axes = plt.subplots(figsize=(8, 2.8))
means = [np.mean(p) for p in sure.values()]
errors = [np.std(p) / np.sqrt(len(p)) for p in sure.values()]
axes.barh(list(sure), means, xerr=errors, color=pictures.BLUE)
for row, (mean, error) in enumerate(zip(means, errors, strict=True)):
    axes.text(mean + error + 0.01, row, f"{mean:.2f}", va="center", fontsize=10)
axes.set(xlim=(0, 1.1), xlabel=f"how sure it still is of its answer, mean of {len(some)} pictures")
axes.set_title(f"A square of {SIDE}×{SIDE} is covered", fontsize=11)
axes.invert_yaxis()
axes.grid(axis="y", visible=False)
plt.show()

# %% [markdown]
# Read the bars with their errors (one standard error each). What is covered matters, and a map that earns its name has
# its brightest square below "anywhere", and its darkest one above. Note, too, how sure the network stays: a part of a
# boot is still a boot, and no single square holds the answer.
#
# A second test, and a warning. There are sharper pictures to be had: let through each ReLU, on the way back, only what
# is positive ("guided" backpropagation). Here they are from our network, and from one that has *learnt nothing at all*:

# %%
heats, likeness = [], {False: [], True: []}
for x, k in zip(batch, answers, strict=True):
    row = []
    for guided in (False, True):
        both = [seeing.saliency(net, x[None], k, guided=guided) for net in (model, untrained)]
        row += [heat / heat.max() for heat in both]
        likeness[guided].append(np.corrcoef(both[0].ravel(), both[1].ravel())[0, 1])
    heats.append(row)
columns = ["gradient", "untrained", "guided", "guided, untrained"]
pictures.heat(seen, heats, names, columns, "share of maximum", overlay=False)

# %%
for guided, values in likeness.items():
    title = "guided" if guided else "gradient"
    print(f"{title:9} correlation of trained and untrained: {np.mean(values):+.2f}")

# %% [markdown]
# The guided pictures look best, and depend least on what the network has learnt: they are nearer to an edge detector
# than to an explanation. Before you believe a picture, ask what it would look like if there were nothing to explain
# (Adebayo et al. [2018](https://arxiv.org/abs/1810.03292), Sanity checks for saliency maps).
#
# ## Larger pictures
#
# Convolutions do not care how large a picture is. It is the first linear layer that does: VGG-16's fc6 has a row of
# 25,088 weights, one for each number of a map of $512 \times 7 \times 7$. On a larger picture that map is larger, and
# the row does not fit.
#
# But look again at what fc6 does with a map. It multiplies every channel and every place by a weight of its own, and
# adds up. That *is* a convolution, with a window of 7×7 that has room for exactly one place. On a larger map it has
# room for more, and answers at each of them:
#
# $$y_{no\,ij} = b_o + \sum_{c,p,q} x_{n\,c\,(i+p)(j+q)}\;w_{o\,cpq}$$
#
# So the same weights, seen in another shape, make a network that slides over any picture. (VGG's paper tests in this
# way, section 3.2, after OverFeat.) All that can go wrong is the order in which a row of 25,088 is unrolled.

# %%
x = np.arange(12).reshape(1, 2, 2, 3)
figure, panels = plt.subplots(1, 3, figsize=(10, 1.9), width_ratios=(3, 3, 12))
drawing.matrix(panels[0], x[0, 0], "channel 0", span=11)
drawing.matrix(panels[1], x[0, 1], "channel 1", span=11)
drawing.matrix(panels[2], x.reshape(1, -1), "flattened: what the linear layer is given", span=11)
plt.show()

# %% [markdown]
# ### Exercise 09.2 · a linear layer that slides
#
# Write `slide(x, w, b, height, width)`. `w` $(O, C\cdot height\cdot width)$ and `b` $(O)$ are a linear layer's, trained
# on flattened maps of $(C, height, width)$; `x` $(N, C, H, W)$ is at least as large. The answer is $(N, O, H - height +
# 1, W - width + 1)$: what the linear layer says of each window.
#
# <details><summary>Hint: which shape?</summary>
#
# Flatten went through $(C, height, width)$ in that order, the last one fastest. `reshape` goes the same way: give it
# the same order, and there is nothing to transpose.
#
# </details>
# <details><summary>Hint: which convolution?</summary>
#
# Any. The library's `conv2d_forward(x, w, b)`, your own of notebook 04, or two loops over places with the linear layer
# inside.
#
# </details>


# %% exercise="09.2"
def slide(x, w, b, height, width):
    ### BEGIN SOLUTION
    O, C = len(w), x.shape[1]
    filters = w.reshape(O, C, height, width)
    windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), axis=(2, 3))
    return np.einsum("nchwpq,ocpq -> nohw", windows, filters, optimize=True) + b[:, None, None]
    ### END SOLUTION


# %%
check_exercise("09.2", slide)

# %% [markdown]
# A whole network of this kind, with yours in the place of fc6: a narrow VGG built for 224×224, given 256×320.

# %%
narrow = vgg("A", width=1 / 8, classifier_width=64, classes=10)
x = rng.standard_normal((1, 3, 256, 320)).astype(np.float32)
fc6 = narrow.classifier[0]
last = narrow.features.forward(x)
mine = slide(last, fc6.weight.data, fc6.bias.data, 7, 7)
dense = narrow.fully_convolutional()
ours = dense.classifier[0].forward(dense.features.forward(x))
print(f"maps {last.shape}, fc6 {fc6.weight.data.shape} slides to {mine.shape}")
print(
    f"from the library's it differs by {np.abs(mine - ours).max():.0e} of {np.abs(ours).max():.1f}"
)
print(f"scores: {dense.forward(x).shape}, one for each of 2×4 places of a 7×7 window")
shared = np.shares_memory(dense.classifier[0].weight.data, fc6.weight.data)
print(f"the filters are the very memory of fc6: {shared}")

# %%
from minivgg.layers import dense as dense_module

print(inspect.getsource(dense_module.fully_convolutional))

# %% [markdown]
# ## A wardrobe
#
# Our network was trained on one garment of 32×32 at a time. Lay a dozen side by side, and slide:

# %%
rows, columns = 3, 4
chosen = rng.choice(len(run.test_set), rows * columns, replace=False)
tiles = np.stack([run.preprocessing(run.test_set.image(int(i))) for i in chosen])
truth = run.test_set.labels[chosen]
wardrobe = (
    tiles.reshape(rows, columns, 32, 32)
    .transpose(0, 2, 1, 3)
    .reshape(1, 1, 32 * rows, 32 * columns)
)
sliding = model.fully_convolutional()
scores = sliding.forward(wardrobe)
found = scores[0].reshape(10, -1).argmax(axis=0)
alone = model.forward(tiles).argmax(axis=1)
print(f"a picture of {wardrobe.shape} gives scores of {scores.shape}")
print(
    f"right: {np.sum(found == truth)} of {len(truth)} sliding, {np.sum(alone == truth)} one by one"
)

# %%
figure, axes = plt.subplots(figsize=(7.5, 5.8))
axes.imshow(wardrobe[0, 0], cmap="gray_r")
for place, (label, answer) in enumerate(zip(truth, found, strict=True)):
    i, j = divmod(place, columns)
    colour = pictures.GREEN if label == answer else pictures.RED
    drawing.frame(axes, 32 * i + 0.5, 32 * j + 0.5, 31, 31, colour)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    axes.text(32 * j + 2, 32 * i + 4.5, run.classes[answer], color=colour, fontsize=10, bbox=box)
axes.set(xticks=[], yticks=[])
axes.grid(False)
plt.show()

# %%
gap = np.abs(scores[0].reshape(10, -1).T - model.forward(tiles)).max()
print(f"sliding and one by one: scores differ by up to {gap:.1f}")
last_conv = [row for row in ledger(sliding, (1, 1, 96, 128)).rows if "classifier" not in row.name]
print(
    f"one unit before the classifier sees {last_conv[-1].receptive_field} pixels, a garment has 32"
)

# %% [markdown]
# One pass, a map of answers, and no garment was cut out. The scores are *not* those of the garments one by one,
# however. A unit of the last map sees further than its 32 pixels: alone, a garment is surrounded by padding; here, by
# its neighbours. For a photograph the paper counts that as a gain: what surrounds a part of it belongs to it, and is
# more context. The neighbours of a shirt in our wardrobe are strangers. How much do they mislead? Hang the garments
# further apart, with some empty places between them, and count:

# %%
garments = 120 if FAST else 400
hung = np.stack([run.preprocessing(run.test_set.image(i)) for i in range(garments)])
labels = run.test_set.labels[:garments]


def hang(gap):
    room = 1 + 2 * gap
    empty = np.full((garments, 1, 32 * room, 32 * room), hung.min(), np.float32)
    empty[:, :, 32 * gap : 32 * (gap + 1), 32 * gap : 32 * (gap + 1)] = hung
    lines = empty.reshape(-1, 4, 32 * room, 32 * room).transpose(0, 2, 1, 3)
    lines = lines.reshape(-1, 1, 1, 32 * room, 128 * room)
    answers = np.concatenate([sliding.forward(line).argmax(axis=1) for line in lines])
    return np.mean(answers[:, gap, gap::room].ravel() == labels)


print(f"one by one           {np.mean(model.forward(hung).argmax(axis=1) == labels):.1%}")
for gap in (0, 1, 2):
    print(f"empty places: {gap}      {hang(gap):.1%}")

# %% [markdown]
# Strangers next door cost something, as expected. Empty places do not give it back: they cost more. In training a
# garment was surrounded by padding, zeros in each layer, and never by a wide black field. Sliding gives a window
# another surrounding than it was trained with; only where that is like what training showed, as within photographs, is
# it a gain.
#
# ### What it saves
#
# For a photograph of 384×384, VGG-16 slides to how many places? And how much would the same crops cost, each by itself?

# %%
full = vgg("D", init="zeros")
crop_macs = ledger(full, (1, 3, 224, 224)).macs
dense_net = full.fully_convolutional()
for size in (224, 256, 384, 512):
    book = ledger(dense_net, (1, 3, size, size))
    side = dense_net.output_shape((1, 3, size, size))[2]
    print(
        f"{size}×{size}: {side:2}×{side:<2} places, sliding {book.macs / 1e9:5.1f} GMAC, "
        f"as crops {side**2 * crop_macs / 1e9:7.1f}: {side**2 * crop_macs / book.macs:5.1f} times"
    )

# %% [markdown]
# What crops compute again and again, where they overlap, sliding computes once.
#
# ## A second look
#
# Evaluation in the paper is more than one look: at several scales, mirrored, sliding or in crops, and the
# *probabilities* of all looks are averaged. Does it help our network? It was trained on garments 28 pixels high, and
# mirrored ones among them.

# %%
from minivgg.training.evaluate import Evaluator, Protocol, evaluate

several = run.test_set.subset(slice(0, 100 if FAST else 400))
for protocol in (
    Protocol(),
    Protocol(flip=True),
    Protocol(dense=True, crops=True, flip=True, scales=(28, 32, 36)),
):
    evaluator = Evaluator(model, run.preprocessing, protocol)
    errors = evaluate(evaluator, several)
    for row in evaluator.rows:
        way, scales = row
        print(
            f"{way:15} {'mirrored too' if protocol.flip else '':13}{', '.join(map(str, scales)):11}"
            f"{evaluator.looks(row):4} looks: error {errors.top(1, row):.1%}"
        )

# %% [markdown]
# Compare the first row with all the others: many looks cost many times as much, and do not help by themselves. On
# ImageNet, with a network that was trained at several scales, the paper's table 5 gains by them; a network that knows
# garments of one size is not made wiser by being shown larger ones.
#
# ## What you have now
#
# - Weights are a table *and* a way to prepare pictures. The second is lost more often than the first, without a sound.
# - A first layer can be looked at; deeper ones by their maps, and by the patches that please them.
# - The gradient of a score says which pixels matter; Grad-CAM says where, by one weight for each map. Both are claims,
#   and can be tested by covering.
# - A linear layer is a convolution with room for one place. Given more room, it slides.
#
# On the command line these are `minivgg predict`, `minivgg see` and `minivgg evaluate` (`docs/using.md`).
#
# All of this ran on a convolution that somebody made fast. How is that done? Back to the ladder: the next notebook
# climbs it.
