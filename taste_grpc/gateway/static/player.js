// Plays the chunks of answers back to back, and knows how much of an answer was heard.

const LEAD_S = 0.03; // between deciding to play and playing, so that nothing is late

export class Player {
  #context = null;
  #analyser = null;
  #samples = null;
  #rate;
  #generation = 0; // of what may be played: what belongs to an older one is dropped
  #decoding = Promise.resolve();
  #sources = new Set();
  #pending = 0;
  #endFrame = 0; // where on the context's clock the last chunk ends
  #turn = null;
  #chunks = []; // {start, length}, in frames of the context's clock, of the turn that plays

  /** `rate`: samples per second of the answers. */
  constructor(rate) {
    this.#rate = rate;
  }

  /** To be called when a person has done something: only then may a page make a sound. */
  wake() {
    if (!this.#context) {
      this.#context = new AudioContext({ sampleRate: this.#rate, latencyHint: 'interactive' });
      this.#analyser = this.#context.createAnalyser();
      this.#analyser.fftSize = 1024;
      this.#samples = new Float32Array(this.#analyser.fftSize);
      this.#analyser.connect(this.#context.destination);
    }
    if (this.#context.state === 'suspended') this.#context.resume();
  }

  /** Whether anything plays or is about to. */
  get isPlaying() {
    return this.#pending > 0 || this.#sources.size > 0;
  }

  /** The turn whose answer was played last; null before the first. */
  get turn() {
    return this.#turn;
  }

  /** Loudness of what plays now, 0 to 1. */
  get level() {
    if (!this.#analyser || this.#sources.size === 0) return 0;
    this.#analyser.getFloatTimeDomainData(this.#samples);
    let sum = 0;
    for (const sample of this.#samples) sum += sample * sample;
    return Math.sqrt(sum / this.#samples.length);
  }

  /** Milliseconds of the answer that have left the loudspeaker. */
  get playedMs() {
    if (!this.#context) return 0;
    const delay = this.#context.outputLatency || this.#context.baseLatency || 0;
    const now = (this.#context.currentTime - delay) * this.#context.sampleRate;
    let frames = 0;
    for (const { start, length } of this.#chunks) frames += Math.max(0, Math.min(length, now - start));
    return Math.floor((1000 * frames) / this.#context.sampleRate);
  }

  /** Play a WAV file, in base64, of the answer of `turn` after what was added before. */
  add(turn, base64) {
    this.wake();
    const generation = this.#generation;
    this.#pending += 1;
    const decoded = this.#context.decodeAudioData(bytesOf(base64));
    decoded.catch(() => {}); // is looked at in its turn
    this.#decoding = this.#decoding.then(async () => {
      try {
        const buffer = await decoded;
        if (generation === this.#generation) this.#play(turn, buffer);
      } finally {
        if (generation === this.#generation) this.#pending -= 1;
      }
    }).catch((error) => console.error('a chunk of audio cannot be played', error));
  }

  /** Be silent at once, and forget what was added. */
  stop() {
    this.#generation += 1;
    this.#pending = 0;
    for (const source of this.#sources) {
      source.onended = null;
      source.stop();
      source.disconnect();
    }
    this.#sources.clear();
    this.#endFrame = 0;
    this.#chunks = [];
  }

  #play(turn, buffer) {
    if (turn !== this.#turn) {
      this.#turn = turn;
      this.#chunks = [];
    }
    const context = this.#context;
    const soonest = Math.ceil((context.currentTime + LEAD_S) * context.sampleRate);
    const start = Math.max(soonest, this.#endFrame); // whole frames: chunks meet without a gap
    this.#endFrame = start + buffer.length;
    this.#chunks.push({ start, length: buffer.length });
    const source = new AudioBufferSourceNode(context, { buffer });
    source.connect(this.#analyser);
    source.onended = () => this.#sources.delete(source);
    this.#sources.add(source);
    source.start(start / context.sampleRate);
  }
}

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
  return bytes.buffer;
}
