//! What drives a measure and counts. Each command prints one line of JSON when it is done or ready.
//!
//! wrk sends as fast as it is answered and so says nothing of a request that could not be sent; and it counts no
//! duplicates. `pace` does both. Everything runs on one thread: the other core is for what is measured.

mod agent;
mod audit;
mod hold;
mod pace;
mod receive;
mod webhook;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
#[command(about = "What drives a measure and counts")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send webhooks at a constant rate and time each from when it was due
    Pace(pace::Arguments),
    /// Receive webhooks, count ids, and tell at `GET /`
    Receive(receive::Arguments),
    /// Answer each event with a message to the outbox
    Agent(agent::Arguments),
    /// Read what a stream holds, and say what is missing and what is there twice
    Audit(audit::Arguments),
    /// Open connections, send a webhook over each, and keep them until SIGTERM
    Hold(hold::Arguments),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    match Arguments::parse().command {
        Command::Pace(arguments) => pace::run(arguments).await,
        Command::Receive(arguments) => receive::run(arguments).await,
        Command::Agent(arguments) => agent::run(arguments).await,
        Command::Audit(arguments) => audit::run(arguments).await,
        Command::Hold(arguments) => hold::run(arguments).await,
    }
}
