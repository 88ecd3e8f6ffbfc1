// The connection to the server: one conversation, opened again when the line breaks.

const RETRY_MS = [500, 1000, 2000, 4000, 8000];
const PASSING = new Set(['OVERLOADED', 'UNAVAILABLE', 'INTERNAL']); // errors that may be over soon
const MAX_UNSENT_BYTES = 1 << 20; // of audio, half a minute
const RETRIED = new Set([1001, 1005, 1006, 1011, 1012, 1013, 1014]);

/**
 * Dispatches `message` (its `detail` is what the server sent), `state` (`off`, `connecting`, `on` or `retrying`) and
 * `lost` (`detail`: whether it is tried `again`, and then `resumes`; whether it was for silence, or an error explained it).
 */
export class Conversation extends EventTarget {
  #socket = null;
  #makeStart;
  #state = 'off';
  #resume = null; // {token, until}
  #isFinal = false; // the server said that trying again is of no use
  #isAnew = false; // it refused to resume, so the next try is without
  #retries = 0;
  #timer = null;
  #unsent = [];

  /** `makeStart()` gives the fields of `start`. */
  constructor(makeStart) {
    super();
    this.#makeStart = makeStart;
  }

  get state() {
    return this.#state;
  }

  get isOpen() {
    return this.#state === 'on';
  }

  /** Whether the server is about to stop, and the conversation can go on elsewhere. */
  get isToMove() {
    return this.#resume !== null && this.isOpen;
  }

  /** Connect, if need be, and at once. */
  open() {
    if (this.#state !== 'off' && this.#timer === null) return;
    this.#wait(null);
    this.#retries = 0;
    this.#connect();
  }

  /** End the conversation. */
  close() {
    this.#wait(null);
    this.#resume = null;
    this.#unsent = [];
    this.#drop();
    this.#enter('off');
  }

  /** Leave a server that is about to stop, and go on with another one, or with the same one once it is back. */
  move() {
    this.#drop();
    this.#connect();
  }

  /** Send a message; what was typed waits until the conversation is open, all else is of the moment. */
  send(message) {
    if (this.isOpen) this.#socket.send(JSON.stringify(message));
    else if (this.#state !== 'off' && message.type === 'text') this.#unsent.push(message);
  }

  /** Send audio, if the conversation is open and the line keeps up; returns whether it does. */
  sendAudio(buffer) {
    if (!this.isOpen) return true;
    if (this.#socket.bufferedAmount > MAX_UNSENT_BYTES) return false;
    this.#socket.send(buffer);
    return true;
  }

  #connect() {
    this.#isFinal = false;
    this.#enter(this.#retries ? 'retrying' : 'connecting');
    const url = new URL('/ws', location.href);
    url.protocol = location.protocol === 'https:' ? 'wss:' : 'ws:';
    const socket = new WebSocket(url);
    this.#socket = socket;
    socket.onopen = () => {
      const start = { type: 'start', ...this.#makeStart() };
      if (this.#resume) start.resume_token = this.#resume.token;
      socket.send(JSON.stringify(start));
    };
    socket.onmessage = ({ data }) => this.#take(JSON.parse(data));
    socket.onclose = ({ code, reason }) => this.#closed(code, reason);
  }

  #take(message) {
    if (message.type === 'started') {
      this.#resume = null;
      this.#retries = 0;
      this.#enter('on');
      for (const unsent of this.#unsent.splice(0)) this.send(unsent);
    } else if (message.type === 'going_away') {
      const { resume_token: token, token_lifetime_ms: lifetimeMs } = message;
      this.#resume = token ? { token, until: Date.now() + lifetimeMs } : null; // without one it could not be kept
    } else if (message.type === 'error' && !this.isOpen) {
      if (!PASSING.has(message.code)) {
        this.#isAnew = this.#resume !== null;
        this.#isFinal = !this.#isAnew;
        this.#resume = null;
      }
      if (message.recoverable) this.#socket.close();
    } else if (message.type === 'error' && !message.recoverable) {
      this.#isFinal = !PASSING.has(message.code);
    }
    this.dispatchEvent(new CustomEvent('message', { detail: message }));
  }

  #closed(code, reason) {
    this.#socket = null;
    if (this.#resume && Date.now() > this.#resume.until) this.#resume = null;
    const isWorthIt = this.#isAnew || (!this.#isFinal && RETRIED.has(code) && this.#retries < RETRY_MS.length);
    this.#isAnew = false;
    if (isWorthIt || this.#resume) {
      this.#wait(RETRY_MS[Math.min(this.#retries, RETRY_MS.length - 1)]);
      this.#retries += 1;
      this.#enter('retrying');
    } else {
      this.#unsent = [];
      this.#enter('off');
    }
    const detail = {
      again: this.#state === 'retrying',
      resumes: this.#resume !== null,
      isIdle: reason === 'idle',
      isExplained: this.#isFinal,
    };
    this.dispatchEvent(new CustomEvent('lost', { detail }));
  }

  /** Connect after `ms`, or, with null, do not. */
  #wait(ms) {
    clearTimeout(this.#timer);
    this.#timer = ms === null ? null : setTimeout(() => {
      this.#timer = null;
      this.#connect();
    }, ms);
  }

  #drop() {
    const socket = this.#socket;
    this.#socket = null;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
  }

  #enter(state) {
    if (state === this.#state) return;
    this.#state = state;
    this.dispatchEvent(new CustomEvent('state', { detail: state }));
  }
}
