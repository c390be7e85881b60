//! `subrosa policy`: render key policies, and check them.

mod accepted;
mod check;
mod render;

use clap::{Subcommand, ValueEnum};

use super::exit::Failure;

pub(crate) use accepted::Accepted;
pub(crate) use render::RoleArguments;

#[derive(Subcommand)]
pub(crate) enum Policy {
    /// Render a key policy from its template.
    #[command(subcommand)]
    Render(Box<render::Render>),
    Check(Box<check::Check>),
}

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// A customer's prompts and answers.
    #[value(name = "customer-key")]
    Customer,
    /// A model supplier's packs.
    #[value(name = "model-pack-key")]
    ModelPack,
    /// Anything, for attested code alone.
    #[value(name = "attested-key")]
    Attested,
}

impl Policy {
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Render(render) => render.run(),
            Self::Check(check) => check.run(),
        }
    }
}
