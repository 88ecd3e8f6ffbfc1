// Runs on the audio thread: microphone blocks of 128 samples become frames of Int16.

const FRAME_SAMPLES = Math.round(sampleRate * 0.03);

class Frames extends AudioWorkletProcessor {
  #frame = new Int16Array(FRAME_SAMPLES);
  #filled = 0;

  process([input]) {
    const samples = input[0];
    if (!samples) return true; // nothing is connected
    for (const sample of samples) {
      this.#frame[this.#filled++] = Math.max(-32768, Math.min(32767, Math.round(sample * 32768)));
      if (this.#filled === this.#frame.length) this.#send();
    }
    return true;
  }

  #send() {
    this.port.postMessage(this.#frame.buffer, [this.#frame.buffer]);
    this.#frame = new Int16Array(FRAME_SAMPLES);
    this.#filled = 0;
  }
}

registerProcessor('frames', Frames);
