//! A model in the making: its weights are packed while the pack is still coming, so before it is known that they are the
//! configured ones.

use std::io::{self, Read};

use inference::{LoadOptions, Model, Opened, Plan};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use super::{PackFault, ServeError};
use crate::memory;
use crate::pack::Checked;

/// Made of bytes that are authentic, but whose digest is not known yet: nothing but [`Provisional::confirm`] gets the model out,
/// and it asks for the proof. Dropped before, the loader ends at the next byte that it waits for, and what it made goes with it.
pub(super) enum Provisional {
    /// The loader waits for parts, or works on them.
    Loading { parts: mpsc::Sender<Zeroizing<Vec<u8>>>, loader: JoinHandle<Result<Model, PackFault>> },
    /// It has taken all that it needs, and what follows the last tensor is not for it.
    Loaded(Box<Model>),
}

impl Provisional {
    /// Starts a loader for a file of `bytes` bytes.
    pub(super) fn begin(bytes: u64) -> Self {
        let (parts, file) = stream();
        let loader = tokio::task::spawn_blocking(move || load(file, bytes));
        Self::Loading { parts, loader }
    }

    /// Hands over the next bytes of the file. Waits until there is room: one part lies ready, while the loader works on another.
    pub(super) async fn feed(&mut self, part: &[u8]) -> Result<(), ServeError> {
        let Self::Loading { parts, loader } = self else { return Ok(()) };
        if parts.send(Zeroizing::new(part.to_vec())).await.is_err() {
            *self = Self::Loaded(Box::new(ended(loader).await?));
        }
        Ok(())
    }

    /// The model, now that the pack is proven.
    pub(super) async fn confirm(self, _proof: &Checked) -> Result<Model, ServeError> {
        match self {
            Self::Loading { parts, mut loader } => {
                drop(parts);
                ended(&mut loader).await
            }
            Self::Loaded(model) => Ok(*model),
        }
    }
}

async fn ended(loader: &mut JoinHandle<Result<Model, PackFault>>) -> Result<Model, ServeError> {
    Ok(loader.await.map_err(|_| ServeError::Internal)??)
}

fn load(file: Parts, bytes: u64) -> Result<Model, PackFault> {
    let opened = Opened::read(file, usize::try_from(bytes).unwrap_or(usize::MAX))?;
    check_room(opened.plan(), memory::available())?;
    Ok(opened.load(&LoadOptions::default())?)
}

/// The engine's own plan against what is left, before anything of the model's size is taken: an allocation that fails ends the
/// enclave without a word.
fn check_room(plan: &Plan, available: u64) -> Result<(), PackFault> {
    let needed = plan.bytes_to_load();
    if needed > available { Err(PackFault::NoRoom { needed, available }) } else { Ok(()) }
}

/// From the task that opens frames to the thread that packs weights.
fn stream() -> (mpsc::Sender<Zeroizing<Vec<u8>>>, Parts) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, Parts { receiver, now: Zeroizing::default(), at: 0 })
}

/// The file, as the loader reads it. It ends when the other side is dropped.
struct Parts {
    receiver: mpsc::Receiver<Zeroizing<Vec<u8>>>,
    now: Zeroizing<Vec<u8>>,
    at: usize,
}

impl Read for Parts {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at == self.now.len() {
            let Some(next) = self.receiver.blocking_recv() else { return Ok(0) };
            (self.now, self.at) = (next, 0);
        }
        let count = self.now.get(self.at..).unwrap_or_default().read(into)?;
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::pack::tests::checked;

    const DEMONSTRATION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/demo-model/subrosa-intake.gguf");

    fn demonstration() -> Vec<u8> {
        std::fs::read(DEMONSTRATION).unwrap()
    }

    async fn fed(file: &[u8], pieces: usize) -> Result<Provisional, ServeError> {
        let mut model = Provisional::begin(file.len() as u64);
        for bytes in file.chunks(pieces) {
            model.feed(bytes).await?;
        }
        Ok(model)
    }

    #[test]
    fn a_model_that_needs_more_memory_than_is_left_is_refused_with_both_figures() {
        let plan = Plan::from_header(&demonstration()).unwrap();
        let needed = plan.bytes_to_load();
        assert!(check_room(&plan, needed).is_ok());
        let refused = check_room(&plan, needed - 1).unwrap_err();
        let PackFault::NoRoom { needed: said, available } = refused else { panic!("{refused}") };
        assert_eq!((said, available), (needed, needed - 1));
    }

    #[tokio::test]
    async fn a_model_that_came_in_parts_is_the_model() {
        let file = demonstration();
        let whole = Model::load(&file, &LoadOptions::default()).unwrap();
        // With bytes behind the last tensor, as a file may have them.
        let longer = [file.as_slice(), &[7; 100_000]].concat();
        for (file, pieces) in [(&file, 65_536), (&longer, 1000)] {
            let model = fed(file, pieces).await.unwrap().confirm(&checked()).await.unwrap();
            let logits = |model: &Model| model.logits(&model.prompt_of_tokens(&[5, 6, 7]).unwrap()).unwrap();
            assert_eq!(logits(&model), logits(&whole));
        }
    }

    #[tokio::test]
    async fn a_model_that_is_none_is_refused_at_its_first_bytes() {
        let refused = fed(&[0; 2 << 20], 65_536).await.err().expect("not a model");
        assert!(matches!(refused, ServeError::Pack(PackFault::Model(_))), "{refused}");
    }

    #[tokio::test]
    async fn a_file_that_ends_early_makes_no_model() {
        let file = demonstration();
        let mut model = Provisional::begin(file.len() as u64);
        model.feed(&file[..file.len() / 2]).await.unwrap();
        assert!(matches!(model.confirm(&checked()).await, Err(ServeError::Pack(PackFault::Model(_)))));
    }

    #[tokio::test]
    async fn no_more_than_one_part_waits_for_the_loader() {
        let (parts, mut file) = stream();
        let send = || parts.send(Zeroizing::new(vec![1, 2, 3]));
        send().await.unwrap();
        assert!(timeout(Duration::from_millis(50), send()).await.is_err(), "nobody has read");
        let read = tokio::task::spawn_blocking(move || {
            let mut byte = [0];
            file.read_exact(&mut byte).unwrap();
            file
        });
        let file = read.await.unwrap();
        timeout(Duration::from_secs(10), send()).await.expect("one part is being read").unwrap();
        drop(file);
        assert!(send().await.is_err(), "the loader is gone");
    }

    #[tokio::test]
    async fn a_loader_whose_pack_is_refused_ends() {
        let file = demonstration();
        let Provisional::Loading { parts, loader } = Provisional::begin(file.len() as u64) else { unreachable!() };
        parts.send(Zeroizing::new(file[..file.len() - 1].to_vec())).await.unwrap();
        drop(parts);
        let ended = timeout(Duration::from_secs(10), loader).await.expect("it waits for nothing").unwrap();
        assert!(matches!(ended, Err(PackFault::Model(_))));
    }
}
