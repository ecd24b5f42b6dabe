"""GVM-RAFT++ in one file, without the package: pilots, n_i ~ G_i / sqrt(p_i + alpha / p_i^(beta - 1)), an update.

The policy writes two digits y1 y2 for a prompt x; the response is right when y1 + y2 = x (mod 11), so every prompt has
eleven valid rationales. A laptop runs it in seconds:

    python examples/gvm_in_one_file.py

Paper: Yao et al., Optimizing Chain-of-Thought Reasoners via Gradient Variance Minimization, arXiv 2505.02391.
"""

import torch

M, NUM_PROMPTS, SAMPLES_PER_PROMPT, PILOTS, STEPS, UPDATES_PER_STEP = 11, 44, 8, 4, 40, 4
ALPHA, BETA, CLIP = 1e-3, 2.0, 0.2


class Policy(torch.nn.Module):
    """Two tokens, the second given the first."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt = torch.nn.Embedding(NUM_PROMPTS, 32)
        self.first = torch.nn.Embedding(M, 32)
        self.head1, self.head2 = torch.nn.Linear(32, M), torch.nn.Linear(32, M)

    def forward(self, x: torch.Tensor, y1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs [N, M] of the first token, and of the second after y1."""
        hidden = self.prompt(x)
        second = torch.relu(hidden + self.first(y1))
        return self.head1(hidden).log_softmax(-1), self.head2(second).log_softmax(-1)

    def logprobs(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """[N, 2] log-probs of responses y [N, 2]."""
        first, second = self(x, y[:, 0])
        return torch.stack([first.gather(1, y[:, :1])[:, 0], second.gather(1, y[:, 1:])[:, 0]], dim=1)

    @torch.no_grad()
    def sample(self, x: torch.Tensor) -> torch.Tensor:
        """Responses [N, 2]."""
        y1 = torch.multinomial(self(x, torch.zeros_like(x))[0].exp(), 1)[:, 0]
        y2 = torch.multinomial(self(x, y1)[1].exp(), 1)[:, 0]
        return torch.stack([y1, y2], dim=1)


def reward(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """[N] 1 where the two digits add up to the prompt."""
    return (y.sum(1) % M == x % M).float()


def gradient_norms(policy: Policy, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """[N] norm of the gradient of each response's log-likelihood in the prompt embeddings (the paper's proxy)."""
    norms = []
    for i in range(len(x)):
        loss = -policy.logprobs(x[i : i + 1], y[i : i + 1]).sum()
        norms.append(torch.autograd.grad(loss, policy.prompt.weight)[0].norm())
    return torch.stack(norms) if norms else torch.zeros(0)


def allocate(accept_rates: torch.Tensor, norms: torch.Tensor, budget: int) -> torch.Tensor:
    """n_i [P] that sum to the budget, at least the pilots each (Proposition 1; largest remainders)."""
    weights = norms / torch.sqrt(accept_rates + ALPHA / accept_rates ** (BETA - 1))
    free = budget - PILOTS * len(weights)
    exact = free * weights / weights.sum()
    counts = exact.floor().long()
    counts[torch.argsort(exact - counts, descending=True)[: free - int(counts.sum())]] += 1
    return counts + PILOTS


def pilot_statistics(
    policy: Policy, prompts: torch.Tensor, x: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Accept rate (with a Beta(1/2, 1/2) prior) and mean gradient norm of the accepted pilots of each prompt."""
    accepted = reward(x, y) == 1
    rates, norms = torch.zeros(len(prompts)), torch.full((len(prompts),), float("nan"))
    for i, prompt in enumerate(prompts):
        mine = x == prompt
        rates[i] = (accepted[mine].sum() + 0.5) / (mine.sum() + 1)
        if (mine & accepted).any():
            norms[i] = gradient_norms(policy, x[mine & accepted], y[mine & accepted]).mean()
    return rates, torch.where(norms.isnan(), norms.nanmean(), norms)


def update(policy: Policy, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    """RAFT++: clipped surrogate on the accepted samples, every prompt weighing the same."""
    kept = reward(x, y) == 1
    x, y = x[kept], y[kept]
    old = policy.logprobs(x, y).detach()
    weights = 1 / torch.bincount(x, minlength=NUM_PROMPTS)[x].float() / len(x.unique())
    for _ in range(UPDATES_PER_STEP):
        ratio = (policy.logprobs(x, y) - old).exp()
        loss = -(weights[:, None] * torch.minimum(ratio, ratio.clamp(1 - CLIP, 1 + CLIP))).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    """Train, and print how the budget moves to the prompts where it reduces gradient variance most."""
    torch.manual_seed(0)
    policy = Policy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)
    prompts = torch.arange(NUM_PROMPTS)
    for step in range(STEPS):
        x = prompts.repeat_interleave(PILOTS)
        y = policy.sample(x)
        rates, norms = pilot_statistics(policy, prompts, x, y)
        counts = allocate(rates, norms, budget=SAMPLES_PER_PROMPT * NUM_PROMPTS)
        more = prompts.repeat_interleave(counts - PILOTS)
        x, y = torch.cat([x, more]), torch.cat([y, policy.sample(more)])
        update(policy, optimizer, x, y)
        if step % 5 == 0 or step == STEPS - 1:
            hard, easy = rates.argmin(), rates.argmax()
            accuracy = reward(x, y)[: len(prompts) * PILOTS].mean()
            print(
                f"step {step:2d}  accuracy {accuracy:.2f}  "
                f"samples {int(counts.sum())}  n_i {int(counts.min())}-{int(counts.max())}  "
                f"hardest p={rates[hard]:.2f} n={int(counts[hard])}  easiest p={rates[easy]:.2f} n={int(counts[easy])}"
            )


if __name__ == "__main__":
    main()
