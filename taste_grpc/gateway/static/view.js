// What is on the page. Knows no sound and no connection.

const PHASES = {
  off: 'Ready when you are',
  idle: 'Ready',
  listening: 'Listening',
  capturing: 'Hearing you',
  thinking: 'Thinking',
  responding: 'Answering',
};
const CONNECTIONS = { off: 'Not connected', connecting: 'Connecting …', on: 'Connected', retrying: 'Connecting again …' };
const STEPS = [
  ['first_partial_ms', 't1', 'first words'],
  ['final_transcript_ms', 't2', 'transcript'],
  ['first_token_ms', 't3', 'first token'],
  ['first_audio_ms', 't4', 'first sound'],
];
const TIMES_SHOWN = 6;
const FOLLOW_PX = 80; // so near to its end the conversation is followed

const $ = (id) => document.getElementById(id);

function make(tag, className, text = '') {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

export class View {
  #turns = new Map();
  #typed = []; // articles of typed turns that the server has not begun yet
  #count = 0;
  #log = $('conversation');
  #isAtEnd = true; // of the conversation: what comes is followed

  constructor() {
    const log = this.#log;
    log.addEventListener('scroll', () => {
      this.#isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < FOLLOW_PX;
    }, { passive: true });
    new ResizeObserver(() => this.#following(() => {})).observe(log);
  }

  /** The article of a turn; made when it is not there yet. */
  #article(key) {
    if (!this.#turns.has(key)) this.#turns.set(key, this.#newArticle());
    return this.#turns.get(key);
  }

  #newArticle() {
    $('welcome').hidden = true;
    const article = make('article', 'turn');
    this.#count += 1;
    article.setAttribute('aria-label', `Turn ${this.#count}`);
    article.append(make('p', 'you'), make('p', 'reply'), make('p', 'mark'));
    this.#append(article);
    return article;
  }

  #append(element) {
    this.#following(() => this.#log.append(element));
  }

  /** Do `change`, and keep the end in sight when it was. */
  #following(change) {
    change();
    if (this.#isAtEnd) this.#log.scrollTop = this.#log.scrollHeight;
  }

  #fill(key, part, text, isPartial = false) {
    this.#following(() => {
      const element = this.#article(key).querySelector(`.${part}`);
      element.textContent = text;
      element.classList.toggle('partial', isPartial);
    });
  }

  /** What was understood, so far or in the end. */
  heard(key, text, isFinal) {
    this.#fill(key, 'you', text, !isFinal);
    if (isFinal && text) this.announce(`You said: ${text}`);
  }

  /** A turn is over: what seemed to be words and turned out to be none is forgotten. */
  over(key) {
    if (this.#turns.get(key)?.querySelector('.you.partial')) this.#fill(key, 'you', '');
  }

  /** What was typed; belongs to the next turn that begins without having been heard. */
  typed(text) {
    const article = this.#newArticle();
    article.querySelector('.you').textContent = text;
    this.#typed.push(article);
    this.#isAtEnd = true;
    this.#following(() => {});
  }

  /** A turn is being answered. */
  answered(key) {
    if (!this.#turns.has(key) && this.#typed.length) this.#turns.set(key, this.#typed.shift());
  }

  /** More of an answer. */
  reply(key, text) {
    const reply = this.#article(key).querySelector('.reply');
    this.#following(() => reply.append(reply.firstChild ? text : text.trimStart()));
  }

  /** Tell what was heard of an answer from what was not. */
  interrupted(key, heard) {
    const reply = this.#article(key).querySelector('.reply');
    const text = reply.textContent;
    const end = endOf(heard, text);
    this.#following(() => reply.replaceChildren(text.slice(0, end), make('span', 'unheard', text.slice(end))));
    this.mark(key, 'interrupted');
  }

  /** A word about how a turn ended. */
  mark(key, text) {
    if (this.#turns.has(key)) this.#fill(key, 'mark', text);
  }

  /** What was typed last has reached nobody. */
  unsent() {
    for (const article of this.#typed.splice(0)) article.querySelector('.mark').textContent = 'not sent';
  }

  /** A line between conversations. */
  divide(text) {
    if (this.#count) this.#append(make('p', 'divider', text));
  }

  connection(state) {
    const element = $('connection');
    element.dataset.state = state;
    element.textContent = CONNECTIONS[state];
  }

  /** `phase`: one of PHASES. */
  phase(phase) {
    const element = $('phase');
    if (element.dataset.phase === phase) return;
    element.dataset.phase = phase;
    element.textContent = PHASES[phase];
  }

  talking(isOn) {
    $('talk').dataset.on = isOn;
    $('talk-label').textContent = isOn ? 'Mute' : 'Talk';
  }

  stoppable(isSo) {
    $('stop').disabled = !isSo;
  }

  /** Loudness of who speaks, 0 to 1. */
  level(level) {
    $('talk').style.setProperty('--level', Math.min(1, level * 5).toFixed(3));
  }

  /** Something is wrong; stays until it is dismissed or over. */
  problem(text) {
    $('problem-text').textContent = text;
    $('problem').hidden = !text;
  }

  /** Something worth knowing. */
  notice(text) {
    $('notice').textContent = text;
  }

  announce(text) {
    $('announcer').textContent = text;
  }

  /** The times of a turn, as a bar from its first sound to the answer's. */
  times(key, metrics) {
    const known = STEPS.filter(([name]) => metrics[name] !== undefined);
    if (!known.length) return;
    $('times-empty').hidden = true;
    $('times-legend').hidden = false;
    const number = this.#article(key).getAttribute('aria-label');
    const item = make('li', 'time');
    const response = metrics.response_ms === undefined ? '' : `, answered ${seconds(metrics.response_ms)} after you had finished`;
    const bar = make('div', 'bar');
    bar.setAttribute('aria-hidden', 'true');
    let before = 0;
    for (const [name, step] of known) {
      const part = make('span', step);
      part.style.flexGrow = Math.max(0, metrics[name] - before);
      before = Math.max(before, metrics[name]);
      bar.append(part);
    }
    const steps = known.map(([name, step, what]) => `${step} ${what} ${seconds(metrics[name])}`).join(' · ');
    item.append(make('p', 'small strong', number + response), bar, make('p', 'small', steps));
    const list = $('times-list');
    list.prepend(item);
    while (list.children.length > TIMES_SHOWN) list.lastElementChild.remove();
  }
}

/** Where `heard`, whose blanks may differ, ends in `text`. */
function endOf(heard, text) {
  let end = 0;
  for (const letter of heard) {
    if (/\s/.test(letter)) continue;
    while (end < text.length && /\s/.test(text[end])) end += 1;
    if (!text.startsWith(letter, end)) break;
    end += letter.length;
  }
  return end;
}

function seconds(ms) {
  return `${(ms / 1000).toFixed(2)} s`;
}
