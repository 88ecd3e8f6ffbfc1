// The page: who talks, what is shown, what is played.

import { Conversation } from './conversation.js';
import { Microphone, MicrophoneError } from './microphone.js';
import { Player } from './player.js';
import { View } from './view.js';

const REPLY_HZ = 24000;
const MAX_UNPLAYED_MS = 5000; // granted to the server, so that little is on its way when it is interrupted
const ACK_EVERY_MS = 150;
const ERRORS = {
  ASR_FAIL: 'What you said could not be recognised',
  ASR_TIMEOUT: 'It took too long to recognise what you said',
  LLM_FAIL: 'There is no answer',
  LLM_TIMEOUT: 'The answer took too long',
  TTS_FAIL: 'Part of the answer could not be spoken',
  MAX_DURATION_EXCEEDED: 'You spoke for longer than a turn may last',
  BACKPRESSURE: 'The connection cannot keep up',
  UNSUPPORTED_SAMPLE_RATE: 'The server does not take this microphone’s sample rate',
  PROTOCOL_VIOLATION: 'This page and the server do not understand each other; reload the page',
  MODEL_LOAD_FAIL: 'The server could not load a model',
  INTERNAL: 'The server failed',
  UNAUTHENTICATED: 'The server asks for an access token; enter it under Settings',
  OVERLOADED: 'The server has no room',
  UNAVAILABLE: 'The server is not ready',
  UNSUPPORTED: 'The server cannot do that',
};

const $ = (id) => document.getElementById(id);
const parameters = new URLSearchParams(location.search);

const view = new View();
const player = new Player(REPLY_HZ);
const microphone = new Microphone({ onFrame: hear, onEnd: () => quieten('The microphone was disconnected.') });
const conversation = new Conversation(startFields);

let epoch = 0; // of connections: each counts its turns from 0
let phase = 'idle';
let turn = null; // the running one
let sentRate = 0; // what the server takes the microphone's sample rate to be
let mayRestart = false; // whether another `start` is allowed
let silenced = null; // the turn whose answer is not to be heard any more
let acked = { key: null, ms: 0 };
let wasSlow = false;

const key = (number) => `${epoch}:${number}`;

function startFields() {
  sentRate = microphone.rate;
  const fields = { sample_rate: sentRate, voice: { sample_rate: REPLY_HZ }, options: { barge_in: $('barge-in').checked } };
  const prompt = $('system-prompt').value.trim();
  const token = $('access-token').value.trim();
  if (prompt) fields.system_prompt = prompt;
  if (token) fields.access_token = token;
  return fields;
}

// --- what the person does

async function talk() {
  player.wake();
  if (microphone.isOn) {
    quieten('');
    if (phase === 'capturing') conversation.send({ type: 'stop' });
    return;
  }
  $('talk').disabled = true;
  try {
    await microphone.open($('processing').checked);
  } catch (error) {
    if (!(error instanceof MicrophoneError)) throw error;
    view.problem(error.message);
    return;
  } finally {
    $('talk').disabled = false;
    $('talk').focus();
  }
  view.problem('');
  view.talking(true);
  conversation.open();
  matchRate();
  animate();
}

function quieten(problem) {
  microphone.close();
  view.talking(false);
  if (problem) view.problem(problem);
}

function say(text) {
  player.wake();
  silence();
  view.problem('');
  view.typed(text);
  conversation.open();
  conversation.send({ type: 'text', text });
}

function stop() {
  acknowledge();
  if (['capturing', 'thinking', 'responding'].includes(phase)) conversation.send({ type: 'cancel' });
  silence();
}

function begin() {
  closeSettings();
  silence();
  conversation.close();
  view.divide('New conversation');
  phase = 'idle';
  view.problem('');
  view.notice('');
  if (microphone.isOn) conversation.open();
}

/** Be silent now, and about what is still to come of this answer. */
function silence() {
  if (player.isPlaying) silenced = player.turn;
  else if (['thinking', 'responding'].includes(phase)) silenced = key(turn);
  player.stop();
}

// --- the microphone

function hear(frame) {
  if (microphone.rate !== sentRate) return;
  const isSlow = !conversation.sendAudio(frame);
  if (isSlow && !wasSlow) view.notice('The connection is too slow for your voice: parts of it are left out.');
  wasSlow = isSlow;
}

/** Tell the server when the microphone has another rate than it was told: between turns. */
function matchRate() {
  const isBetween = mayRestart && !['thinking', 'responding'].includes(phase);
  if (!microphone.isOn || microphone.rate === sentRate || !conversation.isOpen || !isBetween) return;
  sentRate = microphone.rate;
  mayRestart = false;
  conversation.send({ type: 'start', sample_rate: sentRate });
}

// --- what the server says

const handlers = {
  started({ resumed }) {
    epoch += 1;
    phase = 'idle';
    turn = null;
    silenced = null;
    mayRestart = false;
    view.problem('');
    view.notice('');
    if (epoch > 1 && !resumed) view.divide('The conversation begins anew');
    conversation.send({ type: 'playback_credit', max_unplayed_ms: MAX_UNPLAYED_MS });
  },

  phase(message) {
    phase = message.phase;
    turn = message.turn;
    const isNew = player.turn !== key(turn);
    if (phase === 'capturing' && isNew && player.isPlaying) silence();
    if (phase === 'thinking') view.answered(key(turn));
    if (phase === 'complete' || phase === 'error') {
      mayRestart = true;
      view.over(key(turn));
    }
    if (phase === 'capturing' || phase === 'thinking') view.notice('');
    matchRate();
  },

  partial_transcript({ turn: number, text }) {
    view.heard(key(number), text, false);
  },

  final_transcript({ turn: number, text }) {
    view.heard(key(number), text, true);
  },

  llm_token({ turn: number, text }) {
    view.reply(key(number), text);
  },

  tts_chunk({ turn: number, audio_b64: audio }) {
    if (key(number) === silenced) return;
    player.add(key(number), audio);
    animate();
  },

  interrupted({ turn: number, heard_text: heard }) {
    silenced = key(number);
    player.stop();
    view.interrupted(key(number), heard);
  },

  metrics({ turn: number, ...times }) {
    view.times(key(number), times);
  },

  info({ message }) {
    view.notice(sentence(message));
  },

  error({ code, message, turn: number }) {
    if (code === 'CANCELLED') {
      if (number !== undefined) view.mark(key(number), 'stopped');
      return;
    }
    view.problem(`${ERRORS[code] ?? 'Something went wrong'}. (${sentence(message)})`);
    if (code === 'UNAUTHENTICATED') {
      $('settings').open = true;
      $('access-token').focus();
    }
  },
};

function sentence(message) {
  const text = message.trim();
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.?!…]$/.test(text) ? '' : '.');
}

conversation.addEventListener('message', ({ detail }) => handlers[detail.type]?.(detail));
conversation.addEventListener('state', ({ detail }) => view.connection(detail));
conversation.addEventListener('lost', ({ detail: { again, resumes, isIdle, isExplained } }) => {
  phase = 'idle';
  if (again) {
    view.notice(resumes
      ? 'The server is being restarted; the conversation will go on.'
      : 'The connection was lost; trying again.');
    return;
  }
  view.unsent();
  quieten('');
  if (isIdle) view.notice('Nothing was said for a long time, so the connection was closed. Press Talk or type to go on.');
  else if (!isExplained) view.problem('The server cannot be reached. Press Talk or type to try again.');
});

// --- clockwork

/** Tell the server how much was heard. */
function acknowledge() {
  if (player.turn === null || !player.turn.startsWith(`${epoch}:`) || player.turn === silenced) return;
  const ms = player.playedMs;
  if (player.turn === acked.key && ms <= acked.ms) return;
  acked = { key: player.turn, ms };
  conversation.send({ type: 'playback_ack', turn: Number(player.turn.split(':')[1]), played_ms: ms });
}

setInterval(() => {
  if (conversation.isOpen) acknowledge();
  const isBusy = conversation.isOpen && ['capturing', 'thinking', 'responding'].includes(phase);
  view.stoppable(isBusy || player.isPlaying);
  view.phase(shownPhase(isBusy));
  if (conversation.isToMove && !isBusy && !player.isPlaying) conversation.move();
}, ACK_EVERY_MS);

function shownPhase(isBusy) {
  if (player.isPlaying && phase !== 'capturing') return 'responding';
  if (isBusy) return phase;
  if (!conversation.isOpen) return 'off';
  return microphone.isOn ? 'listening' : 'idle';
}

let isAnimated = false;

/** Show the loudness of who speaks, as long as somebody may. */
function animate() {
  if (isAnimated) return;
  isAnimated = true;
  const step = () => {
    const isHeard = microphone.isOn || player.isPlaying;
    view.level(isHeard ? Math.max(player.level, microphone.level) : 0);
    isAnimated = isHeard;
    if (isHeard) requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
}

// --- wiring

function closeSettings() {
  $('settings').open = false;
  $('settings').querySelector('summary').focus();
}

$('talk').addEventListener('click', talk);
$('stop').addEventListener('click', stop);
$('new-conversation').addEventListener('click', begin);
$('problem-close').addEventListener('click', () => view.problem(''));
$('say-form').addEventListener('submit', (event) => {
  event.preventDefault();
  const text = $('say').value.trim();
  if (!text) return;
  $('say').value = '';
  say(text);
});
$('settings-form').addEventListener('submit', (event) => {
  event.preventDefault();
  closeSettings();
});
document.addEventListener('keydown', (event) => {
  if (event.key !== 'Escape') return;
  if ($('settings').open) {
    closeSettings();
  } else if (!$('stop').disabled) {
    stop();
  }
});
document.addEventListener('pointerdown', (event) => {
  if ($('settings').open && !$('settings').contains(event.target)) $('settings').open = false;
});
if (parameters.get('processing') === 'off') $('processing').checked = false;
if (matchMedia('(max-width: 60rem)').matches) $('times').open = false;

// For a look from outside: what is played, how loud, how far.
window.taste = { player, microphone, conversation };
