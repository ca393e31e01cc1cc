//! A device thread that trains by arithmetic: every step adds to one number, in an order that a
//! seed decides. It keeps the protocol of the real one: events, checkpoints, pause, cancel, resume.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tandem::domain::{AdapterSite, AdapterWeights, BaseInfo, TrainMetrics, TrainingCost};
use tandem::worker::{
    Command, TrainControl, TrainEvent, TrainRequest, TrainSnapshot, WorkerHandle,
};
use tokio::sync::mpsc;

use super::database::BASE;

/// What every run of this device does, whatever its data.
pub const STEPS: usize = 10;
pub const CHECKPOINT_EVERY: usize = 2;

/// Lets tests stop the device at a step, as long as they need.
#[derive(Debug, Default)]
pub struct Gate {
    /// 0: never hold.
    hold_after: AtomicUsize,
    reached: AtomicUsize,
    cancelled: AtomicUsize,
}

impl Gate {
    /// Holds the next run after this step, until [`Gate::open`].
    pub fn holding_after(step: usize) -> Arc<Self> {
        Arc::new(Self { hold_after: step.into(), ..Self::default() })
    }

    pub fn open(&self) {
        self.hold_after.store(0, Ordering::SeqCst);
    }

    /// Waits until the device stands at the gate.
    pub async fn reached(&self) {
        while self.reached.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until a run was told to stop.
    pub async fn cancelled(&self) {
        while self.cancelled.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A handle to such a device; it runs until the handle is gone.
pub fn device(gate: Arc<Gate>) -> WorkerHandle {
    let (commands, mut received) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Some(command) = received.recv().await {
            if let Command::Train { run, control, events } = command {
                train(&run, &control, &events, &gate).await;
            }
        }
    });
    WorkerHandle::new(commands, vec![Arc::new(base())], Arc::default())
}

fn base() -> BaseInfo {
    BaseInfo {
        name: BASE.into(),
        family: "llama".into(),
        context_length: 64,
        vocab_size: 8,
        hidden_size: 4,
        num_layers: 1,
        parameters: 1,
        dtype: "f32".into(),
        size_bytes: 4,
        fingerprint: "f".repeat(64),
        modules: Vec::new(),
        saveable: Vec::new(),
        default_targets: Vec::new(),
        vision: None,
        training: TrainingCost::default(),
    }
}

async fn train(
    run: &TrainRequest,
    control: &TrainControl,
    events: &mpsc::Sender<TrainEvent>,
    gate: &Gate,
) {
    let (mut step, mut weight) = match &run.resume {
        None => (0, 1.0),
        Some(path) => read(&std::fs::read(path).expect("a state that was verified")),
    };
    let started = TrainEvent::Started { step, total_steps: STEPS, trainable_parameters: 1 };
    let _ = events.send(started).await;
    while step < STEPS {
        step += 1;
        weight = weight * 1.7 + (run.seed as f32 + step as f32).sin();
        let _ = events.send(TrainEvent::Step(metrics(step))).await;
        let hold = gate.hold_after.load(Ordering::SeqCst);
        while hold == step && !control.pause_requested() && !control.cancel_requested() {
            gate.reached.store(1, Ordering::SeqCst);
            if gate.hold_after.load(Ordering::SeqCst) == 0 || events.is_closed() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if control.cancel_requested() || events.is_closed() {
            gate.cancelled.store(1, Ordering::SeqCst);
            let _ = events.send(TrainEvent::Cancelled).await;
            return;
        }
        if weight.is_nan() {
            let message = "the loss is not a number".to_owned();
            let _ = events.send(TrainEvent::Failed { step, message }).await;
            return;
        }
        if control.pause_requested() && step < STEPS {
            let _ = events.send(TrainEvent::Paused(snapshot(step, weight))).await;
            return;
        }
        if step % CHECKPOINT_EVERY == 0 && step < STEPS {
            let _ = events.send(TrainEvent::Checkpoint(snapshot(step, weight))).await;
        }
    }
    let accuracy = 0.25;
    let evaluated =
        TrainEvent::Evaluated { step, loss: 3.5, mean_token_accuracy: accuracy, tokens: 9 };
    let _ = events.send(evaluated).await;
    let _ = events.send(TrainEvent::Finished(snapshot(step, weight))).await;
}

fn metrics(step: usize) -> TrainMetrics {
    TrainMetrics {
        step,
        total_steps: STEPS,
        train_loss: 4.0 / step as f64,
        train_mean_token_accuracy: 0.5,
        learning_rate: 1e-4,
        grad_norm: 1.0,
        tokens_per_second: 100.0,
        trained_tokens: 11 * step as u64,
    }
}

fn snapshot(step: usize, weight: f32) -> TrainSnapshot {
    let site = AdapterSite {
        module: "model.layers.0.self_attn.q_proj".into(),
        r: 1,
        scaling: 1.0,
        a: vec![weight],
        b: vec![weight],
        magnitude: None,
    };
    TrainSnapshot {
        step,
        state: Arc::new(json!([step, weight.to_bits()]).to_string().into_bytes()),
        best: None,
        served: None,
        adapter: Arc::new(AdapterWeights {
            key: format!("step-{step}"),
            sites: vec![site],
            dropout: 0.0,
            saved: Vec::new(),
        }),
        metrics: Some(metrics(step)),
        valid_loss: None,
        valid_mean_token_accuracy: None,
    }
}

fn read(state: &[u8]) -> (usize, f32) {
    let (step, bits): (usize, u32) = serde_json::from_slice(state).expect("a state");
    (step, f32::from_bits(bits))
}
