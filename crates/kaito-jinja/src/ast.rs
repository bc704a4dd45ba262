//! A parsed template.

/// An index into the template's table of strings: names, attributes and literals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Symbol(pub(crate) u32);

/// An expression, and how deep expressions nest in it.
#[derive(Debug)]
pub(crate) struct Expr {
    pub(crate) node: Node,
    pub(crate) line: u32,
    pub(crate) depth: u16,
}

#[derive(Debug)]
pub(crate) enum Node {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Symbol),
    Name(Symbol),
    Tuple(Vec<Expr>),
    List(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    If {
        test: Box<Expr>,
        then: Box<Expr>,
        otherwise: Option<Box<Expr>>,
    },
    And(Box<(Expr, Expr)>),
    Or(Box<(Expr, Expr)>),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    Binary(Binary, Box<(Expr, Expr)>),
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    Attribute(Box<Expr>, Symbol),
    Item(Box<(Expr, Expr)>),
    /// `start:stop:step` in the brackets after an expression.
    Slice(Box<Expr>, Box<[Option<Expr>; 3]>),
    /// A subscript that no value supports: slices among other subscripts.
    BadSlice,
    Call(Box<Expr>, Box<Args>),
    /// Without an expression, of the block's text.
    Filter(Option<Box<Expr>>, Symbol, Box<Args>),
    Test(Box<Expr>, Symbol, Box<Args>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

impl Binary {
    pub(crate) fn symbol(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Sub => "-",
            Self::Mul => "*",
            Self::Div => "/",
            Self::FloorDiv => "//",
            Self::Mod => "%",
            Self::Pow => "**",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

/// Arguments of a call, filter or test.
#[derive(Debug, Default)]
pub(crate) struct Args {
    pub(crate) positional: Vec<Expr>,
    pub(crate) keywords: Vec<(Symbol, Expr)>,
    pub(crate) star: Option<Expr>,
    pub(crate) double_star: Option<Expr>,
}

/// What a value is assigned to.
#[derive(Debug)]
pub(crate) enum Target {
    Name(Symbol),
    /// `ns.name`.
    Attribute(Symbol, Symbol),
    Tuple(Vec<Target>),
}

/// Whether a printed value is escaped: as the innermost `autoescape` says, or as it is decided at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Escaping {
    Off,
    On,
    Current,
}

#[derive(Debug)]
pub(crate) enum Stmt {
    Data(String),
    Print(Vec<Expr>, Escaping),
    If {
        branches: Vec<(Expr, Vec<Stmt>)>,
        otherwise: Vec<Stmt>,
    },
    /// By its index in [`Tables::loops`].
    For(usize),
    Break,
    Continue,
    Set(Target, Expr),
    SetBlock {
        target: Target,
        filter: Option<Expr>,
        body: Vec<Stmt>,
        line: u32,
    },
    With(Vec<(Target, Expr)>, Vec<Stmt>),
    FilterBlock(Expr, Vec<Stmt>, Escaping),
    /// By its index in [`Tables::macros`].
    Macro(usize),
    /// The body as a macro, and the call that gets it as `caller`. Without a call, the body's text alone is written.
    CallBlock(usize, Option<Expr>),
    Autoescape(Expr, Vec<Stmt>),
    /// By its index in [`Tables::blocks`].
    Block(usize),
    /// `include`, `import`, `from` and `extends`: there is no other template.
    Load {
        template: Expr,
        ignore_missing: bool,
    },
}

#[derive(Debug)]
pub(crate) struct For {
    pub(crate) target: Target,
    pub(crate) iterable: Expr,
    pub(crate) test: Option<Expr>,
    pub(crate) recursive: bool,
    pub(crate) body: Vec<Stmt>,
    pub(crate) otherwise: Vec<Stmt>,
    pub(crate) escaping: Escaping,
}

#[derive(Debug)]
pub(crate) struct Macro {
    /// `None` for the body of a call block.
    pub(crate) name: Option<Symbol>,
    pub(crate) parameters: Vec<(Symbol, Option<Expr>)>,
    pub(crate) body: Vec<Stmt>,
    /// Which of the special names its body reads.
    pub(crate) caller: bool,
    pub(crate) kwargs: bool,
    pub(crate) varargs: bool,
}

#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) name: Symbol,
    pub(crate) scoped: bool,
    pub(crate) required: bool,
    pub(crate) body: Vec<Stmt>,
}

/// A parsed template, and the tables that statements and values refer to by index.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) texts: Vec<String>,
    pub(crate) body: Vec<Stmt>,
    pub(crate) loops: Vec<For>,
    pub(crate) macros: Vec<Macro>,
    pub(crate) blocks: Vec<Block>,
}
