//! What nodes can do, those that are here and those that a pool could bring: the kinds that are known, and
//! how large a task may be.
//!
//! Built-in kinds are our own and nobody describes them anew. Of an own kind that is described more than
//! once the newest word counts: the last registration of a node, or the last change of a pool's template.
//! After a restart of the master that is the node that registered last, and a template only where no node
//! is there. Tasks keep what was said when they were accepted.

use super::{Class, Core, Now, Refusal, submit::class_of};
use crate::{event::TemplateInfo, queue::KindId};
use protocol::{
    node::{KindInfo, NodeRegistration, memory_for_tasks, slots_of},
    task::TaskSpec,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

/// How long a kind or a size of node stays known after the last registration, in microseconds: 7 days.
const KNOWN_US: u64 = 7 * 24 * 3_600 * 1_000_000;
/// Most sizes of nodes that are remembered; the oldest goes first.
const MOST_SIZES: usize = 1_024;

/// What was said of a kind, and when.
struct Described {
    info: KindInfo,
    since_us: u64,
}

/// The kinds that are known.
pub(super) struct Kinds {
    ids: BTreeMap<Arc<str>, KindId>,
    names: Vec<Arc<str>>,
    built_in: BTreeMap<String, KindInfo>,
    /// By kind, then by pool.
    templates: BTreeMap<String, BTreeMap<String, Described>>,
    /// Whether templates were told before: those of the start are older than any word of a node.
    templates_told: bool,
    registered: BTreeMap<String, Described>,
}

impl Kinds {
    pub(super) fn new() -> Self {
        let built_in =
            protocol::kinds::built_in().into_iter().map(|kind| (kind.name.clone(), kind)).collect();
        Self {
            ids: BTreeMap::new(),
            names: Vec::new(),
            built_in,
            templates: BTreeMap::new(),
            templates_told: false,
            registered: BTreeMap::new(),
        }
    }

    fn set_templates(&mut self, templates: &[TemplateInfo], now_us: u64) {
        let now_us = if std::mem::replace(&mut self.templates_told, true) { now_us } else { 0 };
        let before = std::mem::take(&mut self.templates);
        for TemplateInfo { pool, kinds, .. } in templates {
            for info in kinds {
                let same = before.get(&info.name).and_then(|pools| pools.get(pool));
                let same = same.filter(|said| said.info == *info);
                let since_us = same.map_or(now_us, |said| said.since_us);
                let said = Described { info: info.clone(), since_us };
                self.templates.entry(info.name.clone()).or_default().insert(pool.clone(), said);
            }
        }
    }

    pub(super) fn id(&mut self, name: &str) -> KindId {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        // Names that nodes and templates bring; far fewer than 2³².
        let id = KindId(self.names.len() as u32);
        let name: Arc<str> = name.into();
        self.names.push(Arc::clone(&name));
        self.ids.insert(name, id);
        id
    }

    /// How many names there would be with those of these kinds.
    pub(super) fn count_with(&self, kinds: &[KindInfo]) -> usize {
        let fresh: BTreeSet<_> = kinds.iter().map(|kind| kind.name.as_str()).collect();
        self.names.len() + fresh.iter().filter(|name| !self.ids.contains_key(**name)).count()
    }

    pub(super) fn name(&self, id: KindId) -> Arc<str> {
        self.names.get(id.0 as usize).cloned().unwrap_or_else(|| "".into())
    }

    fn registered(&mut self, kind: &KindInfo, now_us: u64) {
        self.registered.insert(kind.name.clone(), Described { info: kind.clone(), since_us: now_us });
        self.registered.retain(|_, said| now_us < said.since_us + KNOWN_US);
    }

    /// What counts of a kind; `None` if it is not known.
    pub(super) fn get(&self, name: &str, now_us: u64) -> Option<&KindInfo> {
        if let Some(own) = self.built_in.get(name) {
            return Some(own);
        }
        let of_nodes = self.registered.get(name).filter(|said| now_us < said.since_us + KNOWN_US);
        // Of pools that said it at the same time the first by name.
        let of_pools =
            self.templates.get(name).and_then(|pools| pools.values().rev().max_by_key(|said| said.since_us));
        match (of_nodes, of_pools) {
            (Some(node), Some(pool)) if pool.since_us > node.since_us => Some(&pool.info),
            (Some(said), _) | (None, Some(said)) => Some(&said.info),
            (None, None) => None,
        }
    }

    pub(super) fn all(&self, now_us: u64) -> Vec<KindInfo> {
        let names = self.built_in.keys().chain(self.templates.keys()).chain(self.registered.keys());
        let names: BTreeSet<_> = names.collect();
        names.into_iter().filter_map(|name| self.get(name, now_us)).cloned().collect()
    }

    /// The known name that is nearest to this one, if any is near.
    pub(super) fn nearest(&self, name: &str, now_us: u64) -> Option<String> {
        let likeness = |known: &KindInfo| strsim::jaro_winkler(name, &known.name);
        self.all(now_us)
            .into_iter()
            .filter(|known| likeness(known) > 0.7)
            .max_by(|one, other| likeness(one).total_cmp(&likeness(other)))
            .map(|known| known.name)
    }
}

/// How large a task a node takes; what is absent is not known before it is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    slots: Option<u32>,
    memory_bytes: Option<u64>,
}

impl Size {
    fn takes(&self, class: &Class) -> bool {
        self.slots.is_none_or(|slots| class.slots() <= slots)
            && self.memory_bytes.is_none_or(|bytes| class.memory_bytes <= bytes)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.slots {
            Some(slots) => write!(out, "{slots} cores")?,
            None => out.write_str("any number of cores")?,
        }
        match self.memory_bytes {
            Some(bytes) => write!(out, " and {bytes} bytes of memory"),
            None => out.write_str(" and any memory"),
        }
    }
}

/// Sizes of the nodes of the last 7 days, and of those that pools would make.
#[derive(Default)]
pub(super) struct Sizes {
    /// With their kinds, and until when they are known.
    nodes: Vec<(Size, Arc<[KindId]>, u64)>,
    /// With the kinds that they have beside the built-in ones.
    templates: Vec<(Size, BTreeSet<String>)>,
}

impl Sizes {
    fn registered(&mut self, size: Size, kinds: &Arc<[KindId]>, now_us: u64) {
        self.nodes.retain(|(other, of, until_us)| now_us < *until_us && (*other, of) != (size, kinds));
        if self.nodes.len() >= MOST_SIZES {
            self.nodes.remove(0);
        }
        self.nodes.push((size, Arc::clone(kinds), now_us + KNOWN_US));
    }

    fn set_templates(&mut self, templates: &[TemplateInfo]) {
        let size = |template: &TemplateInfo| Size {
            slots: template.cores.map(slots_of),
            memory_bytes: template.memory_bytes.map(memory_for_tasks),
        };
        let names = |template: &TemplateInfo| template.kinds.iter().map(|kind| kind.name.clone()).collect();
        // One that leaves both to its manager says nothing; its nodes will.
        let says = |template: &&TemplateInfo| template.cores.is_some() || template.memory_bytes.is_some();
        self.templates =
            templates.iter().filter(says).map(|template| (size(template), names(template))).collect();
    }
}

impl Core {
    pub(super) fn templates_known(&mut self, now: Now, templates: &[TemplateInfo]) {
        self.kinds.set_templates(templates, now.mono_us);
        self.sizes.set_templates(templates);
    }

    /// The kinds and the size of a node become known for 7 days.
    pub(super) fn register_kinds(&mut self, registration: &NodeRegistration, now_us: u64) -> Arc<[KindId]> {
        let mut ids: Vec<_> = registration.kinds.iter().map(|kind| self.kinds.id(&kind.name)).collect();
        for kind in &registration.kinds {
            self.kinds.registered(kind, now_us);
        }
        ids.sort_unstable();
        ids.dedup();
        let ids = ids.into();
        let size = Size {
            slots: Some(slots_of(registration.allotted_cores)),
            memory_bytes: Some(memory_for_tasks(registration.memory_bytes)),
        };
        self.sizes.registered(size, &ids, now_us);
        ids
    }

    /// Refuses what no node that has its kind could ever run; with none known the task waits.
    pub(super) fn could_ever_fit(&self, spec: &TaskSpec, now_us: u64) -> Result<(), Refusal> {
        let (name, id) = (&spec.kind, self.kinds.ids.get(spec.kind.as_str()));
        let class = class_of(spec, id.copied().unwrap_or(KindId(0)));
        let here = |kinds: &[KindId]| id.is_some_and(|id| kinds.binary_search(id).is_ok());
        let nodes = self.sizes.nodes.iter().filter(|(_, kinds, until_us)| now_us < *until_us && here(kinds));
        let built_in = self.kinds.built_in.contains_key(name);
        let templates = self.sizes.templates.iter().filter(|(_, kinds)| built_in || kinds.contains(name));
        let mut sizes = nodes.map(|node| node.0).chain(templates.map(|template| template.0)).peekable();
        if sizes.peek().is_none() || sizes.clone().any(|size| size.takes(&class)) {
            return Ok(());
        }
        let most_cores = sizes.clone().max_by_key(|size| (size.slots, size.memory_bytes));
        let most_memory = sizes.max_by_key(|size| (size.memory_bytes, size.slots));
        let largest = match (most_cores, most_memory) {
            (Some(cores), Some(memory)) if cores != memory => format!("{cores}, or {memory}"),
            (largest, _) => largest.map(|size| size.to_string()).unwrap_or_default(),
        };
        Err(Refusal::NeverFits {
            why: format!(
                "it asks for {} cores and {} bytes of memory, more than any node with kind {name:?} has: the \
                 largest takes {largest}; ask for less or add a larger node",
                class.cores(),
                class.memory_bytes,
            ),
        })
    }
}
