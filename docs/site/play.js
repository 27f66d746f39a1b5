// Figures to play with. Each follows the static picture that it belongs to, which is all that there
// is without JavaScript. The arithmetic is in PPO, and tests compare it with compute_gae, the
// scripts' objective and Gymnasium's autoreset.

const PPO = {
  // A row's objective and its gradient with respect to the ratio, as in core-08.
  clip(advantage, epsilon, ratio) {
    const clipped = Math.min(Math.max(ratio, 1 - epsilon), 1 + epsilon);
    const objective = Math.min(ratio * advantage, clipped * advantage);
    return { objective, gradient: ratio * advantage <= clipped * advantage ? advantage : 0 };
  },

  // Deltas and advantages of a rollout in one environment, as in compute_gae of core-05.
  // terminated: V of what comes after is 0; terminated or truncated: the sum is cut.
  gae(rewards, values, nextValues, terminated, truncated, gamma, lambda) {
    const next = nextValues.map((value, t) => (terminated[t] ? 0 : value));
    const deltas = rewards.map((reward, t) => reward + gamma * next[t] - values[t]);
    const advantages = [...deltas];
    for (let t = deltas.length - 2; t >= 0; t--) {
      if (!terminated[t] && !truncated[t]) advantages[t] += gamma * lambda * advantages[t + 1];
    }
    return { deltas, advantages };
  },

  // The rows that a rollout stores, with observations [episode, step] and episodes of a length.
  autoreset(mode, length, rows) {
    let [episode, step, over] = [0, 0, false];
    return Array.from({ length: rows }, () => {
      const obs = [episode, step];
      if (over) { // next step: this step only resets, whatever the action
        [episode, step, over] = [episode + 1, 0, false];
        return { obs, next: [episode, step], reward: 0, done: false, wrong: "row" };
      }
      const done = ++step === length;
      let next = [episode, step], wrong = "";
      if (done && mode === "next step") over = true;
      else if (done) [episode, step] = [episode + 1, 0];
      if (done && mode === "same step") [next, wrong] = [[episode, step], "next"];
      return { obs, next, reward: 1, done, wrong };
    });
  },
};

const round = (x) => (Math.abs(x) < 5e-4 ? 0 : x).toFixed(3).replace(/\.?0+$/, "");

// A labelled slider, which the arrow keys move, too.
function slider(parent, label, min, max, step, value) {
  const line = parent.appendChild(document.createElement("label"));
  const name = line.appendChild(document.createElement("span"));
  const input = line.appendChild(document.createElement("input"));
  Object.assign(input, { type: "range", min, max, step, value });
  input.setAttribute("value", value);
  const say = () => (name.textContent = `${label} = ${input.value}`);
  input.addEventListener("input", say);
  say();
  return input;
}

function table(rows) {
  const cell = (x) => (typeof x === "object" ? x.outerHTML ?? `<td class="${x.mark}">${x.text}</td>` : `<td>${x}</td>`);
  const [head, ...body] = rows;
  return `<table><thead><tr>${head.map((x) => `<th>${x}</th>`).join("")}</tr></thead><tbody>${
    body.map((row) => `<tr>${row.map(cell).join("")}</tr>`).join("")}</tbody></table>`;
}

const FIGURES = {
  clip(figure) {
    const advantage = slider(figure, "advantage A", -3, 3, 0.5, 1);
    const epsilon = slider(figure, "epsilon", 0, 0.5, 0.05, 0.2);
    const ratio = slider(figure, "ratio", 0, 2, 0.05, 1.3);
    const picture = figure.appendChild(document.createElement("div"));
    const draw = () => {
      const [A, e, r] = [advantage, epsilon, ratio].map((input) => +input.value);
      const scale = 90 / Math.max(1, 2 * Math.abs(A));
      const at = (x) => `${40 + 160 * x},${110 - scale * PPO.clip(A, e, x).objective}`;
      const points = [0, 1 - e, 1, 1 + e, 2].map(at).join(" ");
      const { objective, gradient } = PPO.clip(A, e, r);
      const [x, y] = at(r).split(",");
      picture.innerHTML = `<svg viewBox="0 0 400 215" role="img" aria-label="objective over ratio">
        <path d="M40 10V200M40 110H370" class="axis"/>
        <text x="345" y="126">ratio</text><text x="46" y="18">objective</text>
        <polyline points="${points}"/><circle cx="${x}" cy="${y}" r="6"/></svg>
        <p role="status">objective ${round(objective)}, gradient ${round(gradient)}: ${
          gradient ? `the ratio is ${gradient > 0 ? "raised" : "lowered"}` : "nothing moves this row"}.</p>`;
    };
    figure.addEventListener("input", draw);
    draw();
  },

  gae(figure) {
    const gamma = slider(figure, "gamma", 0, 1, 0.01, 0.99);
    const lambda = slider(figure, "lambda", 0, 1, 0.05, 0.95);
    const rewards = [1, 1, 1, 1, 1, 1], values = [3, 4, 2, 5, 4, 3], next = [4, 2, 5, 4, 3, 2];
    const body = figure.appendChild(document.createElement("table"));
    const names = ["row t", "reward", "V(obs)", "V(next_obs)", "terminated", "truncated", "delta", "advantage"];
    body.innerHTML = `<thead><tr>${names.map((x) => `<th>${x}</th>`).join("")}</tr></thead><tbody>${
      rewards.map((reward, t) => `<tr><td>${t}</td><td>${reward}</td><td>${values[t]}</td><td>${next[t]}</td>
        <td><input type="checkbox" aria-label="row ${t} terminated"></td>
        <td><input type="checkbox" aria-label="row ${t} truncated"></td><td></td><td></td></tr>`).join("")}</tbody>`;
    const draw = () => {
      const rows = [...body.tBodies[0].rows];
      const [terminated, truncated] = [4, 5].map((i) => rows.map((row) => row.cells[i].firstChild.checked));
      const found = PPO.gae(rewards, values, next, terminated, truncated, +gamma.value, +lambda.value);
      rows.forEach((row, t) => {
        row.cells[6].textContent = round(found.deltas[t]);
        row.cells[7].textContent = round(found.advantages[t]);
      });
    };
    figure.addEventListener("input", draw);
    draw();
  },

  autoreset(figure) {
    const line = figure.appendChild(document.createElement("label"));
    line.append("autoreset ");
    const mode = line.appendChild(document.createElement("select"));
    mode.innerHTML = ["next step", "same step", "none"].map((x) => `<option>${x}</option>`).join("");
    const length = slider(figure, "steps of an episode", 2, 5, 1, 3);
    const place = figure.appendChild(document.createElement("div"));
    const said = {
      "next step": "Gymnasium's default. The step after an end only resets: its action was ignored, its row teaches nothing, and V is bootstrapped across two episodes.",
      "same step": "next_obs is already the next episode's first observation. The true one must be dug out of the infos.",
      none: "What the scripts do: every row is a step, next_obs is what was reached, and a reset is a line of its own.",
    };
    const draw = () => {
      const rows = PPO.autoreset(mode.value, +length.value, 8);
      const show = ([episode, step]) => `episode ${episode}, step ${step}`;
      place.innerHTML = table([["row t", "obs", "reward", "next_obs", "done"], ...rows.map((row, t) => [
        t, show(row.obs), row.reward, show(row.next), row.done ? "yes" : ""].map((text, i) => {
        return { text, mark: row.wrong === "row" || (row.wrong === "next" && i === 3) ? "wrong" : "" };
      }))]) + `<p role="status">${said[mode.value]}</p>`;
    };
    figure.addEventListener("input", draw);
    draw();
  },
};

document.querySelectorAll("img").forEach((image) => {
  const name = (image.getAttribute("src") || "").split("/").pop().replace(".svg", "");
  if (!(name in FIGURES) || image.dataset.played) return;
  image.dataset.played = "yes";
  const figure = document.createElement("div");
  figure.className = "play";
  figure.dataset.play = name;
  image.closest("p").after(figure);
  FIGURES[name](figure);
});
