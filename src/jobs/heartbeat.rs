//! Keeping a lease alive, and hearing what became of the job meanwhile.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::domain::JobStatus;
use crate::store::{Lease, Renewed, Store, StoreError};

/// What the holder of a lease should do; later values never give way to earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Order {
    GoOn,
    /// Write a checkpoint and give the job back: it was paused, or the server is stopping.
    LetGo,
    /// Stop and write nothing: the job was cancelled, or somebody else has it.
    Abandon,
}

/// A task that renews a lease until it is dropped.
pub(super) struct Heartbeat {
    orders: watch::Receiver<Order>,
    _task: AbortOnDropHandle<()>,
}

/// How long leases live.
#[derive(Clone, Copy, Debug)]
pub struct LeaseTiming {
    /// A job whose server died is taken up again after this long.
    pub length: Duration,
    /// How often a lease is renewed; several times within `length`.
    pub renew_every: Duration,
}

impl Default for LeaseTiming {
    fn default() -> Self {
        Self { length: Duration::from_secs(30), renew_every: Duration::from_secs(5) }
    }
}

impl Heartbeat {
    pub fn start(
        store: Store,
        tenant: String,
        lease: Lease,
        timing: LeaseTiming,
        stop: CancellationToken,
    ) -> Self {
        let (sender, orders) = watch::channel(Order::GoOn);
        let beat = Beat { store, tenant, lease, timing, orders: sender };
        Self { orders, _task: AbortOnDropHandle::new(tokio::spawn(beat.run(stop))) }
    }

    /// The order in force.
    pub fn order(&self) -> Order {
        *self.orders.borrow()
    }

    /// Resolves when the order becomes graver than `than`.
    pub async fn graver(&mut self, than: Order) -> Order {
        match self.orders.wait_for(|order| *order > than).await {
            Ok(order) => *order,
            // The task ends only after the gravest order, or when the runtime goes.
            Err(_) => Order::Abandon,
        }
    }
}

struct Beat {
    store: Store,
    tenant: String,
    lease: Lease,
    timing: LeaseTiming,
    orders: watch::Sender<Order>,
}

impl Beat {
    async fn run(self, stop: CancellationToken) {
        let mut changes = self.store.changes();
        let mut stopping = stop.is_cancelled();
        if stopping {
            self.give(Order::LetGo);
        }
        let mut next = Instant::now() + self.timing.renew_every;
        while *self.orders.borrow() < Order::Abandon {
            tokio::select! {
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    self.give(Order::LetGo);
                }
                Ok(()) = changes.changed() => self.look().await,
                () = sleep_until(next) => {
                    self.renew().await;
                    next = Instant::now() + self.timing.renew_every;
                }
            }
        }
    }

    /// A change may concern this job: looking is cheaper than renewing.
    async fn look(&self) {
        let Ok(job) = self.store.job(&self.tenant, &self.lease.job).await else { return };
        if job.lease_epoch != self.lease.epoch || job.status.is_final() {
            self.give(Order::Abandon);
        } else if matches!(job.status, JobStatus::Paused | JobStatus::Queued) {
            self.give(Order::LetGo);
        }
    }

    /// An unreachable database loses no lease that nobody else takes; the next beat tries again.
    async fn renew(&self) {
        match self.store.renew_lease(&self.lease, self.timing.length).await {
            Ok(Renewed::GoOn) => {}
            Ok(Renewed::Pause) => self.give(Order::LetGo),
            Err(StoreError::LeaseLost { .. } | StoreError::Conflict { .. }) => {
                self.give(Order::Abandon);
            }
            Err(error) => {
                tracing::warn!(job.id = %self.lease.job, %error, "a lease could not be renewed");
            }
        }
    }

    fn give(&self, order: Order) {
        self.orders.send_if_modified(|current| {
            let graver = order > *current;
            *current = order.max(*current);
            graver
        });
    }
}
