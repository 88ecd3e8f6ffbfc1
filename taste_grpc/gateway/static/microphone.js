// The microphone: mono Int16 frames of 30 ms, at 16 kHz wherever the browser can.

const WANTED_HZ = 16000;

/** Why there is no microphone, as a sentence. */
export class MicrophoneError extends Error {}

export class Microphone {
  #stream = null;
  #context = null;
  #level = 0;

  /** `onFrame(ArrayBuffer)` for each frame, `onEnd()` when the device goes away. */
  constructor({ onFrame, onEnd }) {
    this.onFrame = onFrame;
    this.onEnd = onEnd;
  }

  get isOn() {
    return this.#stream !== null;
  }

  /** Samples per second of the frames. */
  get rate() {
    return this.#context ? this.#context.sampleRate : WANTED_HZ;
  }

  /** Loudness of the newest frame, 0 to 1. */
  get level() {
    return this.isOn ? this.#level : 0;
  }

  /** Ask for the microphone and open it; `processing` is the browser's own against echo and noise. */
  async open(processing) {
    if (!navigator.mediaDevices?.getUserMedia || !window.AudioWorkletNode) {
      throw new MicrophoneError(
        window.isSecureContext
          ? 'This browser cannot use a microphone here. You can type instead.'
          : 'Browsers give out the microphone only to pages from localhost or over HTTPS. You can type instead.');
    }
    const stream = await this.#ask(processing);
    try {
      this.#context = await this.#contextFor(stream);
    } catch (error) {
      for (const track of stream.getTracks()) track.stop();
      throw error;
    }
    this.#stream = stream;
    stream.getAudioTracks()[0].addEventListener('ended', () => {
      if (this.#stream !== stream) return;
      this.close();
      this.onEnd();
    });
  }

  close() {
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#stream = null;
    this.#context?.close();
    this.#context = null;
    this.#level = 0;
  }

  async #ask(processing) {
    const constraints = {
      channelCount: 1, echoCancellation: processing, noiseSuppression: processing, autoGainControl: processing,
    };
    try {
      return await navigator.mediaDevices.getUserMedia({ audio: constraints });
    } catch (error) {
      throw new MicrophoneError(whyNot(error));
    }
  }

  /** A running context that hears `stream`. Some browsers cannot resample a microphone: it keeps its own rate there. */
  async #contextFor(stream) {
    for (const options of [{ sampleRate: WANTED_HZ }, {}]) {
      const context = new AudioContext({ latencyHint: 'interactive', ...options });
      try {
        const source = context.createMediaStreamSource(stream);
        await context.audioWorklet.addModule('/static/worklet.js');
        const frames = new AudioWorkletNode(context, 'frames', { numberOfOutputs: 0, channelCount: 1, channelCountMode: 'explicit' });
        frames.port.onmessage = ({ data }) => this.#take(data);
        source.connect(frames);
        await context.resume();
        return context;
      } catch (error) {
        await context.close();
        if (!options.sampleRate) throw error;
      }
    }
  }

  #take(buffer) {
    if (!this.isOn) return;
    const frame = new Int16Array(buffer);
    let sum = 0;
    for (const sample of frame) sum += sample * sample;
    this.#level = Math.sqrt(sum / frame.length) / 32768;
    this.onFrame(buffer);
  }
}

function whyNot(error) {
  switch (error.name) {
    case 'NotAllowedError':
    case 'SecurityError':
      return 'The microphone was refused. Allow it for this page in the address bar, then press Talk again, or type instead.';
    case 'NotFoundError':
    case 'OverconstrainedError':
      return 'No microphone was found. Connect one and press Talk again, or type instead.';
    case 'NotReadableError':
    case 'AbortError':
      return 'The microphone cannot be used, perhaps because another program has it. You can type instead.';
    default:
      return `The microphone cannot be used (${error.name}). You can type instead.`;
  }
}
